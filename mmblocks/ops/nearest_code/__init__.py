"""The nearest code of each vector, and what a codebook that follows averages needs to know of them."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmblocks.ops.dispatch import Impl, chosen, kernel_of, why_not_on
from mmblocks.ops.nearest_code.reference import nearest_code_reference

__all__ = ["Metric", "Precision", "code_stats", "nearest_code"]

Metric = Literal["l2", "cosine", "dot"]
"""l2: the smallest Euclidean distance. cosine: the smallest angle. dot: the largest dot product, whatever the lengths."""

Precision = Literal["ieee", "tf32x3", "bf16"]
"""Of a kernel's products of wide vectors, which are summed in float32. "bf16" flips codes that are about equally near."""

_NORM_ROWS = 16384
"""Codes whose squares are held at a time."""


def nearest_code(
    x: Tensor, codebook: Tensor, metric: Metric = "l2", *, precision: Precision = "ieee", impl: Impl = "auto"
) -> Tensor:
    """The number of the code that is nearest; the lowest of equals.

    Args:
        x: (N, D), of any floating dtype.
        codebook: (K, D).
        metric: what near means.
        precision: of a kernel's products; plain PyTorch multiplies float32.
        impl: "eager", "triton", or "auto"; see ``mmblocks.ops.which``.

    Returns:
        (N,) int64. Scores are compared in float32, whatever the dtypes and autocast, so that half precision flips no code by
        rounding sums. No gradient flows.

    Raises:
        ValueError: an unknown metric or precision, widths that differ, or no code at all; NaN or infinity (seen on a CPU, outside
            compiled graphs).
        RuntimeError: ``impl="triton"`` where the kernel cannot run.
    """
    for name, value, accepted in (("metric", metric, Metric), ("precision", precision, Precision)):
        if value not in get_args(accepted):
            raise ValueError(f"{name} is {value!r}; accepted: {', '.join(get_args(accepted))}")
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"x is {x.shape[-1]} wide, the codes {codebook.shape[-1]}; accepted: the same width")
    if not len(codebook):
        raise ValueError("the codebook is empty; accepted: at least one code")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x, codebook = x.float(), codebook.float()
        if metric == "cosine":
            x, codebook = normalize(x, dim=-1), normalize(codebook, dim=-1)
        # |x - c|^2 without |x|^2, which is the same for every code. Unit codes are nearest where the dot product is largest.
        half_norm = codebook.new_zeros(len(codebook))
        if metric == "l2":
            half_norm = torch.cat([codes.square().sum(dim=1) / 2 for codes in codebook.split(_NORM_ROWS)])
        if chosen("nearest_code", impl, x, codebook, precision):
            from mmblocks.ops.nearest_code.triton import nearest_code_triton

            return nearest_code_triton(x, codebook, half_norm, precision)
        return nearest_code_reference(x, codebook, half_norm)


def code_stats(x: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sum: what moving averages of codes are made of, without an N x K matrix.

    Args:
        x: (N, D).
        ids: (N,) of 0 ... num_codes - 1.
        num_codes: K.

    Returns:
        (K,) counts and (K, D) sums, float32.
    """
    x = x.detach().float()
    sums = x.new_zeros(num_codes, x.shape[-1]).index_add_(0, ids, x)
    return x.new_zeros(num_codes).index_add_(0, ids, x.new_ones(len(ids))), sums


@kernel_of("nearest_code")
def _why_not(x: Tensor, codebook: Tensor, precision: Precision = "ieee") -> str:
    if place := why_not_on(x, codebook):
        return place
    if torch.version.hip and precision == "tf32x3":
        return "AMD's GPUs have no tf32x3; it takes precision 'ieee' or 'bf16' there"
    if not len(x) or len(codebook) >= 2**31:
        return f"{len(x)} vectors and {len(codebook)} codes; it takes at least one vector and fewer than 2^31 codes"
    return ""
