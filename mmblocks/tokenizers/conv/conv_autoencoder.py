"""The convolutional encoder and decoder of VQGAN, which most published image tokenizers share.

Shapes: B images, H and W pixels, h and w tokens, D width of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.conv.blocks import (
    Conv2d,
    Downsample,
    GroupNorm,
    Level,
    Middle,
    Norm,
    SpatialNorm,
    Upsample,
    channels_first,
    channels_last,
    norm_silu,
)
from mmblocks.tokenizers.conv.row_maps import HeldMap
from mmblocks.tokenizers.conv.stripes import Stripes, check_no_gradients


def encoder_widths(channels: int, multipliers: Sequence[int], num_blocks: int) -> list[list[int]]:
    """Channels before and after each residual block, level by level, from the finest."""
    ends = [channels * multiplier for multiplier in multipliers]
    return [[begin, *[end] * num_blocks] for begin, end in zip([channels, *ends], ends, strict=False)]


def decoder_widths(channels: int, multipliers: Sequence[int], num_blocks: int) -> list[list[int]]:
    """Channels before and after each residual block, level by level, from the finest. A level has one block more."""
    ends = [channels * multiplier for multiplier in multipliers]
    return [[begin, *[end] * (num_blocks + 1)] for begin, end in zip([*ends[1:], ends[-1]], ends, strict=True)]


class ConvArguments(TypedDict, total=False):
    """The arguments of ``ConvSizes``, for the signatures of classes that pass them on."""

    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention_levels: tuple[int, ...]
    latent_channels: int


@dataclass(frozen=True, kw_only=True)
class ConvSizes:
    """Sizes of VQGAN's network: the arguments that encoder, decoder and the tokenizers made of them share.

    Attributes:
        channels: width at the finest level.
        multipliers: width of each level, as a multiple of ``channels``; the sides shrink by ``2 ** (len(multipliers) - 1)``.
        num_blocks: residual blocks a level; a level of the decoder has one more.
        attention_levels: numbers of the levels with attention after each block; 0 is the finest.
        latent_channels: width after the encoder's last 3x3 convolution, and before the decoder's first.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    latent_channels: int = 256


class ConvEncoder(Block):
    """Residual blocks at each level, halving the sides between levels; a middle with attention; a projection.

    Args:
        code_dim: width of a token, to which a 1x1 convolution projects; None for no projection.
        in_channels: colours.
        network: the arguments of ``ConvSizes``.

    Attributes:
        memory_budget: see ``tokenizers.conv.stripes.set_memory_budget``.

    Source: VQGAN (arXiv 2012.09841; CompVis/taming-transformers).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import ConvEncoder
        >>> encoder = ConvEncoder(channels=32, multipliers=(1, 1, 2), num_blocks=1, code_dim=4)
        >>> tuple(encoder(torch.randn(1, 3, 8, 16)).shape)
        (1, 2, 4, 4)
    """

    memory_budget: int | None = None
    shorthand = ConvSizes

    def __init__(
        self,
        *,
        code_dim: int | None = 256,
        in_channels: int = 3,
        **network: Unpack[ConvArguments],
    ) -> None:
        super().__init__()
        sizes = ConvSizes(**network)
        self.conv_in = Conv2d(in_channels, sizes.channels, 3, padding=1)
        widths = encoder_widths(sizes.channels, sizes.multipliers, sizes.num_blocks)
        self.levels = nn.ModuleList(Level(ws, attention=number in sizes.attention_levels) for number, ws in enumerate(widths))
        for level, ws in zip(list(self.levels)[:-1], widths, strict=False):
            level.resample = Downsample(ws[-1])
        self.middle = Middle(widths[-1][-1])
        self.norm_out = GroupNorm(widths[-1][-1])
        self.conv_out = Conv2d(widths[-1][-1], sizes.latent_channels, 3, padding=1)
        self.project = nn.Identity() if code_dim is None else Conv2d(sizes.latent_channels, code_dim, 1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Pixels, normalised, of any floating dtype, to features. Odd sides are rounded down at each level."""
        pixels = pixels.to(self.conv_in.weight.dtype)
        if self.memory_budget is not None:
            return channels_last(self.project(self._in_stripes(pixels, self.memory_budget)))
        x = self.conv_in(pixels)
        for level in self.levels:
            x = level(x)
        x = self.conv_out(norm_silu(self.norm_out, self.middle(x)))
        return channels_last(self.project(x))

    def _in_stripes(self, pixels: Tensor, budget: int) -> Tensor:
        check_no_gradients(self, pixels)
        maps = []
        for image in pixels.split(1):
            stripes = Stripes(budget)
            x = stripes.conv(HeldMap([image]), self.conv_in)
            for level in self.levels:
                x = stripes.level(x, level)
            maps.append(stripes.whole(stripes.conv(stripes.middle(x, self.middle), self.conv_out, self.norm_out)))
        return torch.cat(maps)


class ConvDecoder(Block):
    """A projection, a middle with attention, residual blocks at each level, doubling the sides between levels.

    Args:
        code_dim: as in ``ConvEncoder``.
        out_channels: colours.
        deepest_first: whether ``levels[0]`` is the deepest level, as in LlamaGen's files, or the finest, as in taming's.
        condition_dim: width of the map that conditions every norm, as in MoVQ (arXiv 2209.09002); None for plain norms.
        network: the arguments of ``ConvSizes``.

    Attributes:
        memory_budget: see ``tokenizers.conv.stripes.set_memory_budget``.

    Source: VQGAN (arXiv 2012.09841; CompVis/taming-transformers).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import ConvDecoder
        >>> decoder = ConvDecoder(channels=32, multipliers=(1, 1, 2), num_blocks=1, code_dim=4)
        >>> tuple(decoder(torch.randn(1, 2, 4, 4)).shape)
        (1, 3, 8, 16)
    """

    memory_budget: int | None = None
    shorthand = ConvSizes

    def __init__(
        self,
        *,
        code_dim: int | None = 256,
        out_channels: int = 3,
        deepest_first: bool = False,
        condition_dim: int | None = None,
        **network: Unpack[ConvArguments],
    ) -> None:
        super().__init__()
        sizes = ConvSizes(**network)
        norm: Norm = GroupNorm if condition_dim is None else partial(SpatialNorm, condition_dim=condition_dim)
        self.deepest_first = deepest_first
        self.in_dim = sizes.latent_channels if code_dim is None else code_dim
        widths = decoder_widths(sizes.channels, sizes.multipliers, sizes.num_blocks)
        self.project = nn.Identity() if code_dim is None else Conv2d(code_dim, sizes.latent_channels, 1)
        self.conv_in = Conv2d(sizes.latent_channels, widths[-1][0], 3, padding=1)
        self.middle = Middle(widths[-1][0], norm=norm)
        levels = [Level(ws, attention=number in sizes.attention_levels, norm=norm) for number, ws in enumerate(widths)]
        for level, ws in zip(levels[1:], widths[1:], strict=True):
            level.resample = Upsample(ws[-1])
        self.levels = nn.ModuleList(levels[::-1] if deepest_first else levels)
        self.norm_out = norm(widths[0][-1])
        self.conv_out = Conv2d(widths[0][-1], out_channels, 3, padding=1)

    def forward(self, features: Float[Tensor, "B h w D"], *condition: Tensor) -> Float[Tensor, "B 3 H W"]:
        """Features to pixels, normalised. ``condition``, a map (B, C, *, *), goes to the norms where they take one.

        Raises:
            ValueError: features of another shape.
        """
        check_shape("features", features, "B", "h", "w", self.in_dim)
        maps = self.project(channels_first(features))
        if self.memory_budget is not None:
            return self._in_stripes(maps, self.memory_budget, *condition)
        x = self.middle(self.conv_in(maps), *condition)
        for level in self.from_deepest():
            x = level(x, *condition)
        return self.conv_out(norm_silu(self.norm_out, x, *condition))

    def _in_stripes(self, maps: Tensor, budget: int, *condition: Tensor) -> Tensor:
        check_no_gradients(self, maps, *condition)
        pixels = []
        for image, *beside in zip(maps.split(1), *(values.split(1) for values in condition), strict=True):
            stripes = Stripes(budget, *beside)
            x = stripes.middle(stripes.conv(HeldMap([image]), self.conv_in), self.middle)
            for level in self.from_deepest():
                x = stripes.level(x, level)
            pixels.append(stripes.whole(stripes.conv(x, self.conv_out, self.norm_out)))
        return torch.cat(pixels)

    def from_deepest(self) -> list[nn.Module]:
        """The levels in the order in which they run."""
        levels = list(self.levels)
        return levels if self.deepest_first else levels[::-1]
