"""The encoder and decoder of Open-MAGVIT2, for images and for clips.

Shapes: B images, H and W pixels (T frames), h and w tokens (t), D width of a token.
"""

import math
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.conv.blocks import GroupNorm, norm_silu
from mmblocks.tokenizers.conv.magvit2 import CausalConvolution, Conv, DepthToSpace, FlatConvolution, Residual, StatisticsNorm


class ResidualLevel(nn.Module):
    """Residual blocks at one resolution; a norm before them where the codes condition it, a change of the sides after them."""

    def __init__(self, widths: list[int], *, conv: Conv) -> None:
        super().__init__()
        self.condition: nn.Module | None = None
        self.blocks = nn.Sequential(*(Residual(before, after, conv=conv) for before, after in pairwise(widths)))
        self.resample: nn.Module | None = None

    def forward(
        self, x: Float[Tensor, "B C *size"], codes: Float[Tensor, "B D *grid"] | None = None
    ) -> Float[Tensor, "B C2 *size2"]:
        """``codes`` go to the norm."""
        if self.condition is not None:
            x = self.condition(x, codes)
        x = self.blocks(x)
        return x if self.resample is None else self.resample(x)


def _conv(temporal_levels: tuple[int, ...] | None) -> Conv:
    return FlatConvolution if temporal_levels is None else CausalConvolution


def _step(level: int, temporal_levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """What the sides, and frames, are divided by between a level and the next."""
    return (2, 2) if temporal_levels is None else (2 if level in temporal_levels else 1, 2, 2)


class OpenMAGVIT2Encoder(Block):
    """Residual blocks at each level, halving the sides between levels; more of them; a kernel of size one. No attention.

    Args:
        channels: width at the finest level.
        multipliers: width of each level, as a multiple of ``channels``; the sides shrink by ``2 ** (len(multipliers) - 1)``.
        num_blocks: residual blocks a level, and after the last.
        code_dim: D.
        temporal_levels: for clips, with convolutions that are causal in time: numbers of the levels after which frames are halved
            too; 0 is the finest. None: for images.

    Source: Open-MAGVIT2 (arXiv 2409.04410; TencentARC/SEED-Voken).
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 4,
        code_dim: int = 18,
        temporal_levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        conv = _conv(temporal_levels)
        ends = [channels * multiplier for multiplier in multipliers]
        self.conv_in = conv(3, channels, 3, bias=False)
        self.levels = nn.ModuleList(
            ResidualLevel([begin, *[end] * num_blocks], conv=conv) for begin, end in zip([channels, *ends], ends, strict=False)
        )
        for number, level in enumerate(list(self.levels)[:-1]):
            level.resample = conv(ends[number], ends[number], 3, stride=_step(number, temporal_levels))
        self.middle = nn.Sequential(*(Residual(ends[-1], ends[-1], conv=conv) for _ in range(num_blocks)))
        self.norm_out = GroupNorm(ends[-1])
        self.conv_out = conv(ends[-1], code_dim, 1)

    def forward(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """Pixels, normalised, to features. Odd sides are rounded up at each level; of ``1 + T`` frames come ``1 + T // 2``."""
        x = self.conv_in(pixels)
        for level in self.levels:
            x = level(x)
        return self.conv_out(norm_silu(self.norm_out, self.middle(x))).movedim(1, -1)


class OpenMAGVIT2Decoder(Block):
    """Residual blocks, then levels of them, doubling the sides between levels. The codes condition a norm before each level.

    Args:
        channels, multipliers, num_blocks, code_dim, temporal_levels: as in ``OpenMAGVIT2Encoder``.

    Source: Open-MAGVIT2 (arXiv 2409.04410; TencentARC/SEED-Voken).
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 4,
        code_dim: int = 18,
        temporal_levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.shape = (*("hw" if temporal_levels is None else "thw"), code_dim)
        conv = _conv(temporal_levels)
        upsample = partial(DepthToSpace, conv=conv)
        ends = [channels * multiplier for multiplier in multipliers]
        self.conv_in = conv(code_dim, ends[-1], 3)
        self.middle = nn.Sequential(*(Residual(ends[-1], ends[-1], conv=conv) for _ in range(num_blocks)))
        begins = [*ends[1:], ends[-1]]
        self.levels = nn.ModuleList(
            ResidualLevel([begin, *[end] * num_blocks], conv=conv) for begin, end in zip(begins, ends, strict=True)
        )
        for number, level in enumerate(self.levels):
            level.condition = StatisticsNorm(begins[number], condition_dim=code_dim)
            if number:
                level.resample = upsample(ends[number], step=_step(number - 1, temporal_levels))
        self.norm_out = GroupNorm(ends[0])
        self.conv_out = conv(ends[0], 3, 3)

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B 3 *size"]:
        """Codes, of any dtype, to pixels, normalised.

        Raises:
            ValueError: features of another shape, or of a single place, which has no spread to condition the norms.
        """
        check_shape("features", features, "B", *self.shape)
        if math.prod(features.shape[1:-1]) < 2:
            raise ValueError(f"features have shape {tuple(features.shape)}; accepted: two places or more")
        # Contiguous with channels last, so that latents and ids go through the same kernels, which are those of official code too.
        codes = features.contiguous().movedim(-1, 1).to(next(self.parameters()).dtype)
        x = self.middle(self.conv_in(codes))
        for level in reversed(list(self.levels)):
            x = level(x, codes)
        return self.conv_out(norm_silu(self.norm_out, x))
