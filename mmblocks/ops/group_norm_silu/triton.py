"""Group norm and SiLU as two Triton kernels on maps whose channels lie side by side.

The first gathers sums over some places each, for all groups at once; a short reduction in float64 makes mean and spread of them;
the second reads the map once more and writes the result. Two passes over the map instead of the four or five of separate
steps, and as many programs at a batch of one as the map has blocks.

Shapes: B batch, C channels, P places, G groups.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_P = 32
"""Places that a program works on at a time."""

PLACES_OF_A_SHARE = 256
"""Places whose sums one program gathers."""


@torch.library.custom_op("mmblocks::group_norm_silu", mutates_args=())
def group_norm_silu_triton(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``silu(group_norm(x))`` of (B, C, H, W) or (B, C, T, H, W), channels last in memory in and out."""
    places = x.detach().movedim(1, -1).contiguous()  # no copy if the channels lie side by side already
    batch, channels = x.shape[:2]
    num_places = places[0, ..., 0].numel()
    shares = triton.cdiv(num_places, PLACES_OF_A_SHARE)
    options = {"C": channels, "BLOCK_P": BLOCK_P, "BLOCK_C": triton.next_power_of_2(channels), "enable_fp_fusion": True}
    sums, squares = (torch.empty(batch, shares, channels, dtype=torch.float32, device=x.device) for _ in range(2))
    _sums[(shares, batch)](places, sums, squares, num_places, SHARE=PLACES_OF_A_SHARE, **options)
    mean, inverse = _statistics(sums, squares, num_places, num_groups, eps)
    scale = inverse if weight is None else inverse * weight.float()
    shift = -mean * scale if bias is None else bias.float() - mean * scale
    out = torch.empty_like(places)
    _apply[(triton.cdiv(num_places, BLOCK_P), batch)](places, scale.contiguous(), shift.contiguous(), out, num_places, **options)
    return out.movedim(-1, 1)


@group_norm_silu_triton.register_fake
def _(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.empty_like(x.movedim(1, -1), memory_format=torch.contiguous_format).movedim(-1, 1)


def _statistics(sums: Tensor, squares: Tensor, num_places: int, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """(B, C) mean and one over the spread of each channel's group. In float64: the square of a mean far from zero cancels."""
    of_group = sums.shape[-1] // num_groups
    count = num_places * of_group
    total, total_squares = (part.double().sum(dim=1).unflatten(1, (num_groups, of_group)).sum(dim=2) for part in (sums, squares))
    mean = total / count
    variance = (total_squares / count - mean.square()).clamp(min=0)
    inverse = (variance + eps).rsqrt()
    return mean.repeat_interleave(of_group, dim=1).float(), inverse.repeat_interleave(of_group, dim=1).float()


@triton.jit
def _sums(x, sums, squares, num_places, C: tl.constexpr, SHARE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of each channel, and of its squares, over the places of one share."""
    share = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    total_squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, SHARE, BLOCK_P):
        places = share * SHARE + start + tl.arange(0, BLOCK_P)
        at = (image * num_places + places)[:, None] * C + channels[None, :]
        there = (places < num_places)[:, None] & (channels < C)[None, :]
        values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(values, axis=0)
        total_squares += tl.sum(values * values, axis=0)
    at = (image * tl.num_programs(0) + share) * C + channels
    tl.store(sums + at, total, mask=channels < C)
    tl.store(squares + at, total_squares, mask=channels < C)


@triton.jit
def _apply(x, scale, shift, out, num_places, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Scaled, shifted and through SiLU: one block of places."""
    places = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C
    at = (image * num_places + places)[:, None] * C + channels[None, :]
    there = (places < num_places)[:, None] & inside[None, :]
    values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    factor = tl.load(scale + image * C + channels, mask=inside, other=0.0)
    offset = tl.load(shift + image * C + channels, mask=inside, other=0.0)
    values = values * factor[None, :] + offset[None, :]
    tl.store(out + at, (values * tl.sigmoid(values)).to(out.dtype.element_ty), mask=there)
