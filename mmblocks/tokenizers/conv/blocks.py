"""The pieces of the convolutional autoencoders of VQGAN and its many descendants.

Maps are (B, C, H, W). A norm is made by a ``norm(channels)`` that is handed in, and called with the map and whatever
conditions it.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, pad, scaled_dot_product_attention, silu

from mmblocks.ops.arithmetic import lacks_arithmetic
from mmblocks.ops.conv2d import conv2d
from mmblocks.ops.group_norm_silu import group_norm_silu

Norm = Callable[[int], nn.Module]

NUM_GROUPS = 32
"""Groups of every norm, so that all widths are multiples of it."""


class Conv2d(nn.Conv2d):
    """Square kernels on zeros around the map; as fast as float32 where a CPU lacks half precision (see ``ops.conv2d``)."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, size, stride, padding, bias=bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """See ``torch.nn.Conv2d``."""
        return conv2d(x, self.weight, self.bias, stride=self.stride[0], padding=int(self.padding[0]))


class GroupNorm(nn.GroupNorm):
    """32 groups, eps 1e-6; takes no condition.

    Raises:
        ValueError: channels that are no positive multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        if channels < 1 or channels % NUM_GROUPS:
            where = "at a norm (channels times each of multipliers, latent_channels where a norm comes before it)"
            raise ValueError(f"channels is {channels} {where}; accepted: multiples of {NUM_GROUPS}")
        super().__init__(NUM_GROUPS, channels, eps=1e-6)


def norm_silu(norm: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """``silu(norm(x, *condition))``; in one pass over the map where the norm is a group norm and a kernel can run."""
    if isinstance(norm, nn.GroupNorm) and not condition:
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return silu(norm(x, *condition))


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift, at each place, come from a map that conditions it.

    Source: MoVQ (arXiv 2209.09002).
    """

    def __init__(self, channels: int, *, condition_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.scale = Conv2d(condition_dim, channels, 1)
        self.shift = Conv2d(condition_dim, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"], condition: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """``condition`` may be smaller than the map: the nearest place counts."""
        height, width = x.shape[-2:]
        # Where a row of the condition stands for several whole rows of the map, it is not repeated in memory.
        rows = condition.shape[-2] if height % condition.shape[-2] == 0 else height
        scale, shift = (
            interpolate(conv(condition), size=(rows, width), mode="nearest")[:, :, :, None] for conv in (self.scale, self.shift)
        )
        return torch.addcmul(shift, self.norm(x).unflatten(2, (rows, -1)), scale).flatten(2, 3)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; added to the input, which a 1x1 convolution widens where needed."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm = GroupNorm, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = norm(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Float[Tensor, "B C H W"], *condition: Tensor) -> Float[Tensor, "B C2 H W"]:
        """``condition`` goes to the norms."""
        hidden = self.conv1(norm_silu(self.norm1, x, *condition))
        hidden = self.conv2(norm_silu(self.norm2, hidden, *condition))
        return self.shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """One head of attention between all places of a map, added to it."""

    def __init__(self, channels: int, *, norm: Norm = GroupNorm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.query = Conv2d(channels, channels, 1)
        self.key = Conv2d(channels, channels, 1)
        self.value = Conv2d(channels, channels, 1)
        self.out = Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"], *condition: Tensor) -> Float[Tensor, "B C H W"]:
        """``condition`` goes to the norm."""
        # Linear layers on channels-last tokens, not 1x1 convolutions: with other strides, torch's CPU attention falls back to
        # holding the scores between all places at once.
        tokens = rearrange(self.norm(x, *condition), "b c h w -> b 1 (h w) c")
        if lacks_arithmetic(tokens):
            tokens = tokens.float()
        query, key, value = (_pointwise(tokens, conv) for conv in (self.query, self.key, self.value))
        mixed = _pointwise(scaled_dot_product_attention(query, key, value), self.out)
        return x + rearrange(mixed.to(x.dtype), "b 1 (h w) c -> b c h w", h=x.shape[2])


def _pointwise(tokens: Tensor, conv: nn.Conv2d) -> Tensor:
    bias = None if conv.bias is None else conv.bias.to(tokens.dtype)
    return linear(tokens, conv.weight.flatten(1).to(tokens.dtype), bias)


class Downsample(nn.Module):
    """Halves the sides: zeros to the right and below, then a 3x3 convolution of stride 2. Odd sides are rounded down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Sides of H // 2 and W // 2."""
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the sides: every pixel four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Sides of 2 h and 2 w."""
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where there is some."""

    def __init__(self, widths: list[int], *, attention: bool, norm: Norm = GroupNorm) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(before, after, norm=norm) for before, after in pairs)
        self.attentions = nn.ModuleList(AttentionBlock(after, norm=norm) for _, after in pairs if attention)
        self.resample: nn.Module | None = None

    def forward(self, x: Float[Tensor, "B C H W"], *condition: Tensor) -> Float[Tensor, "B C2 H2 W2"]:
        """The blocks, then ``resample`` where this level has one."""
        for number, block in enumerate(self.blocks):
            x = block(x, *condition)
            if len(self.attentions):
                x = self.attentions[number](x, *condition)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block: at the lowest resolution."""

    def __init__(self, channels: int, *, norm: Norm = GroupNorm) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, norm=norm)
        self.attention = AttentionBlock(channels, norm=norm)
        self.block2 = ResidualBlock(channels, channels, norm=norm)

    def forward(self, x: Float[Tensor, "B C H W"], *condition: Tensor) -> Float[Tensor, "B C H W"]:
        """Keeps the shape."""
        return self.block2(self.attention(self.block1(x, *condition), *condition), *condition)


def channels_last(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W C"]:
    """A map as features."""
    return maps.permute(0, 2, 3, 1)


def channels_first(features: Float[Tensor, "B H W C"]) -> Float[Tensor, "B C H W"]:
    """Features as a map."""
    return features.permute(0, 3, 1, 2)
