"""The three transformers of MingTok: pixels to latents, latents to semantic features, features to pixels.

Shapes: B images, H and W pixels, h and w tokens, N tokens of a row, D width of a latent, F width of a semantic feature.
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from mmblocks.block import Block
from mmblocks.layers.towers.vit import causal_bias, init_truncated, vit_blocks
from mmblocks.support.checks import check_shape

HEAD_DIM = 64
"""Width of an attention head, in all three."""


class MingTokEncoder(Block):
    """A vision transformer whose outputs are squeezed to a few numbers a patch.

    Args:
        image_size: sides of an image, in pixels, that the positions are learned for; they are interpolated for others.
        patch_size: sides of a patch, in pixels.
        latent_dim: D, a divisor of ``dim``.
        dim, num_layers: of the transformer; the width is a multiple of 64.

    Raises:
        ValueError: widths that do not divide as they should.

    Source: MingTok (arXiv 2510.06590; inclusionAI/Ming-UniVision).
    """

    def __init__(
        self, *, image_size: int = 512, patch_size: int = 32, latent_dim: int = 32, dim: int = 768, num_layers: int = 12
    ) -> None:
        super().__init__()
        _check_widths(latent_dim, dim)
        self.side = image_size // patch_size
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, self.side**2 + 1, dim) * 0.02)
        self.blocks = vit_blocks(dim, num_layers, dim // HEAD_DIM, swiglu=True)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, latent_dim)
        self.patch_embed.apply(init_truncated)
        self.project.apply(init_truncated)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Pixels in [-1, 1] to latents, without that of the class token: it comes last, where no causal decoder looks."""
        rows = pixels.shape[2] // self.patch_embed.stride[0]
        return rearrange(self.tokens(pixels)[:, :-1], "b (h w) d -> b h w d", h=rows)

    def tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Latents row by row, and the class token's at the end."""
        patches = self.patch_embed(pixels)
        x = torch.cat([rearrange(patches, "b c h w -> b (h w) c"), self.class_token.expand(len(pixels), -1, -1)], dim=1)
        x = x + self._positions(*patches.shape[2:])
        for block in self.blocks:
            x = block(x)
        shortcut = reduce(x, "b n (d group) -> b n d", "mean", d=self.project.out_features)
        return shortcut + self.project(gelu(self.norm(x)))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Interpolated for another grid than the learned one. Scales are a tenth of a patch too large, as in DINO."""
        if (rows, columns) == (self.side, self.side):
            return self.positions
        patches = rearrange(self.positions[:, :-1].float(), "b (h w) c -> b c h w", h=self.side)
        scales = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        patches = rearrange(interpolate(patches, scale_factor=scales, mode="bicubic"), "b c h w -> b (h w) c")
        return torch.cat([patches.to(self.positions), self.positions[:, -1:]], dim=1)


class MingTokSemanticDecoder(Block):
    """Latents to the features a language model reads. Each token sees those before it, so that images can be generated.

    Args:
        latent_dim: D, a divisor of ``dim``.
        dim, num_layers: of the transformer; the width, F, is a multiple of 64.
        latent_mean, latent_std: with which the latents were normalised.

    Raises:
        ValueError: widths that do not divide as they should.

    Source: MingTok (arXiv 2510.06590; inclusionAI/Ming-UniVision).
    """

    def __init__(
        self,
        *,
        latent_dim: int = 32,
        dim: int = 1024,
        num_layers: int = 24,
        latent_mean: float = 1.46817409,
        latent_std: float = 8.09449291,
    ) -> None:
        super().__init__()
        _check_widths(latent_dim, dim)
        self.latent_mean = latent_mean
        self.latent_std = latent_std
        self.project = nn.Linear(latent_dim, dim)
        self.blocks = vit_blocks(dim, num_layers, dim // HEAD_DIM, swiglu=True)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project.apply(init_truncated)

    def forward(self, z: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid F"]:
        """Normalised latents: a whole grid, or the first tokens of an image in a row (B, N, D)."""
        latents = z.flatten(1, -2) * self.latent_std + self.latent_mean
        x = self.project(latents)
        x = x + repeat(latents, "b n d -> b n (d group)", group=x.shape[-1] // z.shape[-1])
        hidden_future = causal_bias(x)
        for block in self.blocks:
            x = block(x, attn_mask=hidden_future)
        return self.norm(x).unflatten(1, z.shape[1:-1])


class MingTokDecoder(Block):
    """Latents to semantic features, and those to pixels: each feature becomes several smaller patches, which all see each other.

    Args:
        semantic: latents to semantic features.
        semantic_dim: F.
        patch_size: pixels a latent spans.
        pixel_patch_size: pixels a smaller patch spans, a divisor of ``patch_size``.
        dim, num_layers: of the transformer between the smaller patches; the width is a multiple of 64.

    Raises:
        ValueError: patches that do not divide as they should.

    Source: MingTok (arXiv 2510.06590; inclusionAI/Ming-UniVision).
    """

    def __init__(
        self,
        *,
        semantic: MingTokSemanticDecoder,
        semantic_dim: int = 1024,
        patch_size: int = 32,
        pixel_patch_size: int = 16,
        dim: int = 1024,
        num_layers: int = 24,
    ) -> None:
        super().__init__()
        if patch_size % pixel_patch_size:
            raise ValueError(f"pixel_patch_size is {pixel_patch_size}; accepted: divisors of patch_size, which is {patch_size}")
        _check_widths(1, dim)
        self.num_parts = patch_size // pixel_patch_size
        self.pixel_patch_size = pixel_patch_size
        self.semantic = semantic
        self.split = nn.Linear(semantic_dim, dim * self.num_parts**2)
        self.blocks = vit_blocks(dim, num_layers, dim // HEAD_DIM)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_pixels = nn.Linear(dim, pixel_patch_size**2 * 3)
        self.split.apply(init_truncated)
        self.to_pixels.apply(init_truncated)

    def forward(self, z: Float[Tensor, "B h w D"]) -> Float[Tensor, "B 3 H W"]:
        """Normalised latents to pixels, about in [-1, 1].

        Raises:
            ValueError: latents of another shape: of those in a row nobody knows how wide the image is.
        """
        check_shape("latents", z, "B", "h", "w", self.semantic.project.in_features)
        return self.paint(self.semantic(z))

    def paint(self, features: Float[Tensor, "B h w F"]) -> Float[Tensor, "B 3 H W"]:
        """Semantic features to pixels, about in [-1, 1]."""
        x = rearrange(self.split(features), "b h w (x y c) -> b (h x w y) c", x=self.num_parts, y=self.num_parts)
        for block in self.blocks:
            x = block(x)
        x = self.to_pixels(self.norm(x))
        size = {"h": features.shape[1] * self.num_parts, "p": self.pixel_patch_size, "q": self.pixel_patch_size}
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", **size)


def _check_widths(latent_dim: int, dim: int) -> None:
    if dim <= 0 or dim % HEAD_DIM or dim % latent_dim:
        raise ValueError(f"dim is {dim}; accepted: multiples of {HEAD_DIM} and of the latent's width, {latent_dim}")
