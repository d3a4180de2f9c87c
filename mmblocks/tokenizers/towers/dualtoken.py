"""DualToken: codes for pixels from an early layer of SigLIP 2, and codes for meaning from a late one.

Shapes: B images, H and W pixels, h and w tokens, C width of SigLIP 2, D2 width of the codes of both kinds side by side.
"""

from functools import partial
from typing import ClassVar, Unpack

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.configurable import together
from mmblocks.layers.images.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.layers.towers.siglip import SiglipArguments, SiglipSizes, SiglipVision
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck
from mmblocks.tokenizers.conv.blocks import GroupNorm, channels_first, channels_last, norm_silu
from mmblocks.tokenizers.conv.conv_autoencoder import ConvArguments, ConvDecoder, ConvSizes
from mmblocks.tokenizers.towers.attention_projection import AttentionProjection
from mmblocks.tokenizers.towers.dualtoken_layout import DUALTOKEN_LAYOUTS
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_BOTTLENECKS = {"rq": RQBottleneck, "rq_ema": JointRQBottleneck}


class DualTokenEncoder(Block):
    """Two states of SigLIP 2, narrowed by attention; a still earlier state is added to the one for pixels.

    Args:
        pixel_layer, shortcut_layer, semantic_layer: how many layers lie before each state.
        shortcut_weight: of the earliest state.
        code_dim: width of either kind of features.
        tower: the arguments of ``SiglipSizes``.
    """

    shorthand = SiglipSizes

    def __init__(
        self,
        *,
        pixel_layer: int,
        shortcut_layer: int,
        semantic_layer: int,
        shortcut_weight: float,
        code_dim: int,
        **tower: Unpack[SiglipArguments],
    ) -> None:
        super().__init__()
        dim = SiglipSizes(**tower).dim
        self.vision = SiglipVision(**tower)
        self.pixel_layer = pixel_layer
        self.shortcut_layer = shortcut_layer
        self.semantic_layer = semantic_layer
        self.shortcut_weight = shortcut_weight
        heads = dim // code_dim
        self.to_pixel = AttentionProjection(in_dim=dim, out_dim=code_dim, num_heads=heads)
        self.to_shortcut = AttentionProjection(in_dim=dim, out_dim=code_dim, num_heads=heads)
        self.to_semantic = AttentionProjection(in_dim=dim, out_dim=code_dim, num_heads=heads)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D2"]:
        """Pixels, normalised, to features: those for pixels, then those for meaning."""
        x = self.vision.embed(pixels)
        states = [x]
        for layer in list(self.vision.layers)[: self.semantic_layer]:
            x = layer(x)
            states.append(x)
        pixel = self.to_pixel(states[self.pixel_layer])
        pixel = pixel + self.shortcut_weight * self.to_shortcut(states[self.shortcut_layer])
        features = torch.cat([pixel, self.to_semantic(x)], dim=-1)
        return rearrange(features, "b (h w) d -> b h w d", h=pixels.shape[2] // self.vision.patch.kernel_size[0])

    def rest(self, semantic: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """SigLIP 2's own pooled vector, from what replaces its state at ``semantic_layer``."""
        x = semantic
        for layer in list(self.vision.layers)[self.semantic_layer :]:
            x = layer(x)
        return self.vision.pool(self.vision.norm(x))


class WideningBlock(nn.Module):
    """A residual block whose first convolution sees one place only."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C2 h w"]:
        """Changes the width."""
        return self.shortcut(x) + self.conv2(norm_silu(self.norm2, self.conv1(norm_silu(self.norm1, x))))


class DualTokenDecoder(Block):
    """The vectors for pixels, widened by causal attention, stretched to another grid, and a VQGAN's decoder.

    Args:
        dim: C.
        code_dim: width of a code of either kind.
        latent_size: rows and columns of the grid that the decoder begins with.
        network: the arguments of ``ConvSizes``.
    """

    shorthand = ConvSizes

    def __init__(self, *, dim: int, code_dim: int, latent_size: tuple[int, int], **network: Unpack[ConvArguments]) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.latent_size = latent_size
        self.from_pixel = AttentionProjection(in_dim=code_dim, out_dim=dim, num_heads=dim // code_dim, causal=True)
        self.widen = WideningBlock(dim, ConvSizes(**network).latent_channels)
        self.network = ConvDecoder(code_dim=None, **network)

    def forward(self, z: Float[Tensor, "B h w D2"]) -> Float[Tensor, "B 3 H W"]:
        """Vectors to pixels, normalised; those for meaning are not read."""
        maps = channels_first(self.from_pixel(z[..., : self.code_dim]))
        if maps.shape[2:] != self.latent_size:
            maps = interpolate(maps, size=self.latent_size, mode="bilinear")
        return self.network(channels_last(self.widen(maps)))


class DualTokenArguments(SiglipArguments, ConvArguments, total=False):
    """Those of the tower and of the decoder's network."""


_SIZES = together(SiglipSizes, partial(ConvSizes, multipliers=(1, 1, 4, 4, 8), attention_levels=(4,), latent_channels=1024))


class DualToken(VisualTokenizer):
    """One image as two kinds of codes: from early states, which a decoder paints, and from a late one, which a text model reads.

    A token has ``2 * depth`` codes, first those for pixels. Vectors of both kinds are side by side likewise.

    Args:
        num_codes, code_dim, depth: of either bottleneck; all depths of one share a codebook.
        bottleneck_types: how the codes for pixels and those for meaning learn: "rq" as ``RQBottleneck``, "rq_ema" as
            ``JointRQBottleneck``.
        decays, restart_unused: of the bottleneck for pixels and of that for meaning; see ``AveragingCodebook``.
        pixel_layer, shortcut_layer, semantic_layer, shortcut_weight: see ``DualTokenEncoder``.
        latent_size: see ``DualTokenDecoder``.
        arguments: those of ``SiglipSizes`` and ``ConvSizes``.

    The defaults are those of the model for 384 pixels.

    Raises:
        ValueError: a bottleneck type that does not exist.

    Source: DualToken (arXiv 2503.14324; songweii/DualToken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import DualToken
        >>> sizes = {"image_size": 20, "patch_size": 10, "dim": 32, "num_layers": 3, "num_heads": 2, "mlp_dim": 16}
        >>> layers = {"pixel_layer": 1, "shortcut_layer": 0, "semantic_layer": 2}
        >>> decoder = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "attention_levels": (), "latent_channels": 32}
        >>> dual = DualToken(num_codes=16, code_dim=8, depth=2, latent_size=(4, 4), **sizes, **layers, **decoder).eval()
        >>> latents = dual.encode(torch.rand(1, 3, 20, 20))
        >>> tuple(latents.ids.shape), [tuple(found.shape) for found in dual.semantic(latents)]
        ((1, 2, 2, 4), [(1, 2, 2, 32), (1, 32)])
    """

    layouts: ClassVar[tuple[Layout, ...]] = DUALTOKEN_LAYOUTS
    loss_weights: ClassVar[dict[str, float]] = {"pixel_commitment": 5.0, "semantic_commitment": 5.0}
    shorthand = staticmethod(_SIZES)
    encoder: DualTokenEncoder

    def __init__(
        self,
        *,
        num_codes: int = 16384,
        code_dim: int = 32,
        depth: int = 8,
        bottleneck_types: tuple[str, str] = ("rq", "rq_ema"),
        decays: tuple[float, float] = (0.99, 0.99),
        restart_unused: tuple[bool, bool] = (True, True),
        pixel_layer: int = 6,
        shortcut_layer: int = 4,
        semantic_layer: int = 26,
        shortcut_weight: float = 0.6,
        latent_size: tuple[int, int] = (24, 24),
        **arguments: Unpack[DualTokenArguments],
    ) -> None:
        tower, network = _SIZES(**arguments)
        dim, image_size, patch_size = tower["dim"], tower["image_size"], tower["patch_size"]
        pixel, semantic = (
            _bottleneck(kind)(num_codes=num_codes, dim=code_dim, depth=depth, shared=True, decay=decay, restart_unused=restarts)
            for kind, decay, restarts in zip(bottleneck_types, decays, restart_unused, strict=True)
        )
        super().__init__(
            encoder=DualTokenEncoder(
                pixel_layer=pixel_layer,
                shortcut_layer=shortcut_layer,
                semantic_layer=semantic_layer,
                shortcut_weight=shortcut_weight,
                code_dim=code_dim,
                **tower,
            ),
            bottleneck=DualBottleneck(pixel=pixel, semantic=semantic),
            decoder=DualTokenDecoder(dim=dim, code_dim=code_dim, latent_size=latent_size, **network),
            downsampling=(patch_size, patch_size),
        )
        self.image_size = image_size
        self.only_size = (image_size, image_size)
        self.code_dim = code_dim
        self.from_semantic = AttentionProjection(in_dim=code_dim, out_dim=dim, num_heads=dim // code_dim, causal=True)

    def semantic(self, latents: Latents) -> tuple[Float[Tensor, "B h w C"], Float[Tensor, "B C"]]:
        """What the codes for meaning stand for: SigLIP 2's state of each patch, and its pooled vector of the image."""
        state = self.from_semantic(latents.z[..., self.code_dim :])
        return state, self.encoder.rest(state.flatten(1, 2))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Shorter side to ``image_size`` (bicubic), then the square in the middle.

        Source: songweii/DualToken, the transform of its evaluation.
        """
        return pixels_of(torchvision_square(rgb_of(image), self.image_size, PILImage.Resampling.BICUBIC))


def _bottleneck(kind: str) -> type[RQBottleneck]:
    if kind not in _BOTTLENECKS:
        raise ValueError(f"bottleneck_types hold {kind!r}; accepted: {', '.join(_BOTTLENECKS)}")
    return _BOTTLENECKS[kind]
