"""The encoder and decoders of TiTok: vision transformers between an image's patches and a few tokens that belong to no place.

Shapes: B images, P patches of h rows and w columns, K tokens, D width of a token, W width of a transformer, L words.
"""

from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.towers.vit import init_truncated, vit_blocks
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import Codebook
from mmblocks.tokenizers.titok.sizes import HalfArguments, HalfSizes


def _embedding(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) * dim**-0.5)


class TiTokTransformer(nn.Module):
    """A class token, the patches of an image and any further tokens, each of which sees all."""

    def __init__(self, sizes: HalfSizes) -> None:
        super().__init__()
        self.class_token = _embedding(1, sizes.dim)
        self.positions = _embedding(1 + sizes.side**2, sizes.dim)
        self.norm_in = nn.LayerNorm(sizes.dim)
        self.blocks = vit_blocks(sizes.dim, sizes.num_layers, sizes.num_heads, eps=1e-5)
        self.norm_out = nn.LayerNorm(sizes.dim)

    def forward(
        self, patches: Float[Tensor, "B P W"], tokens: Float[Tensor, "B N W"]
    ) -> tuple[Float[Tensor, "B P W"], Float[Tensor, "B N W"]]:
        """Patches and tokens; patches get their positions here, tokens have theirs already."""
        image = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1) + self.positions
        x = self.norm_in(torch.cat([image, tokens], dim=1))
        for block in self.blocks:
            x = block(x)
        _, patches, tokens = self.norm_out(x).split([1, patches.shape[1], tokens.shape[1]], dim=1)
        return patches, tokens


class TiTokEncoder(Block):
    """Learned tokens that look at an image's patches and keep what they need to remember it.

    Args:
        scrambled: reads the (K, W) features of an image as if they were stored (W, K), so that each token mixes numbers of all:
            a slip of the first published models, which were trained with it.
        sizes: the arguments of ``HalfSizes``; ``code_dim`` is twice a latent's width for a Gaussian bottleneck.

    Source: TiTok (arXiv 2406.07550; bytedance/1d-tokenizer).
    """

    shorthand = HalfSizes

    def __init__(self, *, scrambled: bool = False, **sizes: Unpack[HalfArguments]) -> None:
        super().__init__()
        own = HalfSizes(**sizes)
        self.scrambled = scrambled
        self.patch_embed = nn.Conv2d(3, own.dim, own.patch_size, own.patch_size)
        self.tokens = _embedding(own.num_tokens, own.dim)
        self.token_positions = _embedding(own.num_tokens, own.dim)
        self.transformer = TiTokTransformer(own)
        self.project = nn.Linear(own.dim, own.code_dim)
        self.patch_embed.apply(init_truncated)
        self.project.apply(init_truncated)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K D"]:
        """Pixels in [0, 1], of the one size the positions are for, to features."""
        patches = rearrange(self.patch_embed(pixels), "b c h w -> b (h w) c")
        tokens = (self.tokens + self.token_positions).expand(len(pixels), -1, -1)
        _, features = self.transformer(patches, tokens)
        if self.scrambled:
            batch, count, dim = features.shape
            features = features.reshape(batch, dim, count).transpose(1, 2)
        return self.project(features)


class PatchesOfTokens(nn.Module):
    """Features of all patches of an image: copies of one mask token, filled in from the tokens."""

    def __init__(self, sizes: HalfSizes) -> None:
        super().__init__()
        self.side = sizes.side
        self.embed = nn.Linear(sizes.code_dim, sizes.dim)
        self.token_positions = _embedding(sizes.num_tokens, sizes.dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, sizes.dim) * sizes.dim**-0.5)
        self.transformer = TiTokTransformer(sizes)
        self.embed.apply(init_truncated)

    def forward(self, z: Float[Tensor, "B K D"], *guides: Float[Tensor, "B L W"]) -> Float[Tensor, "B h w W"]:
        """``guides`` are further tokens for the patches to look at.

        Raises:
            ValueError: tokens of another number or width.
        """
        accepted = (len(self.token_positions), self.embed.in_features)
        if z.shape[1:] != accepted:
            raise ValueError(f"tokens have shape {tuple(z.shape)}; accepted: (B, {accepted[0]}, {accepted[1]})")
        tokens = self.embed(z) + self.token_positions
        patches, _ = self.transformer(self.mask_token.expand(len(z), self.side**2, -1), torch.cat([tokens, *guides], dim=1))
        return rearrange(patches, "b (h w) c -> b h w c", h=self.side)


class TextGuide(nn.Module):
    """Embeddings of a text as tokens of the decoder."""

    def __init__(self, text_dim: int, text_length: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(text_dim, dim)
        self.positions = _embedding(text_length, dim)
        self.embed.apply(init_truncated)

    def forward(self, text: Float[Tensor, "B L T"]) -> Float[Tensor, "B L W"]:
        """Refuses another length or width with a ValueError."""
        accepted = (len(self.positions), self.embed.in_features)
        if text.shape[1:] != accepted:
            raise ValueError(f"text has shape {tuple(text.shape)}; accepted: (B, {accepted[0]}, {accepted[1]})")
        return self.embed(text) + self.positions


class TiTokDecoder(Block):
    """Tokens to pixels, patch by patch, and a 3x3 convolution over the seams.

    Args:
        text_dim: width of the text embeddings that guide the decoder, as in TA-TiTok; None for no guidance.
        text_length: L, if there are.
        sizes: the arguments of ``HalfSizes``.

    Source: TA-TiTok (arXiv 2501.07730; bytedance/1d-tokenizer).
    """

    shorthand = HalfSizes

    def __init__(self, *, text_dim: int | None = None, text_length: int = 77, **sizes: Unpack[HalfArguments]) -> None:
        super().__init__()
        own = HalfSizes(**sizes)
        self.patch_size = own.patch_size
        self.patches = PatchesOfTokens(own)
        self.guide = None if text_dim is None else TextGuide(text_dim, text_length, own.dim)
        self.to_pixels = nn.Linear(own.dim, own.patch_size**2 * 3)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.to_pixels.apply(init_truncated)
        self.conv_out.apply(init_truncated)

    def forward(self, z: Float[Tensor, "B K D"], text: Float[Tensor, "B L T"] | None = None) -> Float[Tensor, "B 3 H W"]:
        """Tokens to pixels, about in [0, 1].

        Raises:
            ValueError: tokens or text of another shape; text where none is taken, or none where it is.
        """
        if (text is None) != (self.guide is None):
            raise ValueError(
                f"text is {'missing' if text is None else 'given'}; text_dim, with which the decoder was made, says so"
            )
        guides = () if text is None or self.guide is None else (self.guide(text),)
        patches = self.to_pixels(self.patches(z, *guides))
        size = {"p": self.patch_size, "q": self.patch_size}
        return self.conv_out(rearrange(patches, "b h w (p q c) -> b c (h p) (w q)", **size))


class TiTokLogitDecoder(Block):
    """Tokens to logits of the codes of another tokenizer.

    Args:
        num_pixel_codes: C, how many codes the other tokenizer has.
        sizes: the arguments of ``HalfSizes``; ``image_size`` is h and w of the other tokenizer's grid times ``patch_size``.

    Source: TiTok (arXiv 2406.07550; bytedance/1d-tokenizer).
    """

    shorthand = HalfSizes

    def __init__(self, *, num_pixel_codes: int = 1024, **sizes: Unpack[HalfArguments]) -> None:
        super().__init__()
        own = HalfSizes(**sizes)
        self.patches = PatchesOfTokens(own)
        self.to_logits = nn.Sequential(nn.Linear(own.dim, 2 * own.dim), nn.Tanh(), nn.Linear(2 * own.dim, num_pixel_codes))
        self.to_logits.apply(init_truncated)

    def forward(self, z: Float[Tensor, "B K D"]) -> Float[Tensor, "B h w C"]:
        """One logit for each code of the other tokenizer.

        Raises:
            ValueError: tokens of another number or width.
        """
        return self.to_logits(self.patches(z))


class TiTokCodeDecoder(TiTokLogitDecoder):
    """Tokens to the codes of another tokenizer, and on to pixels with its decoder.

    Args:
        codebook, pixel_decoder: of the other tokenizer: ``VQGAN().bottleneck`` and ``VQGAN().decoder``, say.
        sizes: the arguments of ``HalfSizes``; see ``TiTokLogitDecoder``.

    Source: TiTok (arXiv 2406.07550; bytedance/1d-tokenizer).
    """

    def __init__(self, *, codebook: Codebook, pixel_decoder: Block, **sizes: Unpack[HalfArguments]) -> None:
        (num_pixel_codes,) = codebook.codebook_sizes
        super().__init__(num_pixel_codes=num_pixel_codes, **sizes)
        self.codebook = codebook
        self.pixel_decoder = pixel_decoder

    def logits(self, z: Float[Tensor, "B K D"]) -> Float[Tensor, "B h w C"]:
        """One logit for each code of the other tokenizer: the first stage of training compares them with its ids.

        Raises:
            ValueError: tokens of another number or width.
        """
        return super().forward(z)

    def forward(self, z: Float[Tensor, "B K D"]) -> Float[Tensor, "B 3 H W"]:
        """Tokens to pixels, of a mixture of codes at each place, so that the second stage of training has gradients.

        Raises:
            ValueError: tokens of another number or width.
        """
        return self.pixel_decoder(self.codebook.mix(self.logits(z).softmax(dim=-1)))
