"""Of each of a linear map's logits, whether it is the right one: a loss without a normaliser, and never with all logits."""

import torch
from torch import Tensor

from mmblocks.ops.chunked_linear import check_ids, check_map, exact, rows_a_chunk
from mmblocks.ops.linear_sigmoid_loss.reference import linear_sigmoid_loss_reference

__all__ = ["linear_sigmoid_loss"]


def linear_sigmoid_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, chunk_bytes: int | None = None
) -> Tensor:
    """The mean over rows of the sum over ids of ``binary_cross_entropy_with_logits(hidden @ weight.T + bias, id == target)``.

    Args:
        hidden: (N, D), of any floating dtype; products are rounded to it, as a linear layer rounds them.
        weight: (V, D), of the same dtype.
        target: (N,) integers: the one right id of each row.
        bias: (V,), or one for all ids; added in float32.
        chunk_bytes: memory for logits; 64 MiB on a CPU and 1 GiB elsewhere if None.

    Returns:
        The loss, float32 (float64 of float64); 0 of no rows.

    Raises:
        ValueError: shapes or dtypes that do not fit; on a CPU also a target out of range.

    Source: SigLIP (arXiv 2303.15343).
    """
    check_map(hidden, weight, target)
    if bias is not None and bias.shape not in ((), weight.shape[:1]):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted: () or ({len(weight)},)")
    check_ids(target, torch.ones_like(target, dtype=torch.bool), 0, len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        offsets = hidden.new_zeros(len(weight), dtype=exact(hidden.dtype))
        if bias is not None:
            offsets = offsets + bias
        return linear_sigmoid_loss_reference(hidden, weight, target, offsets, rows_a_chunk(hidden, len(weight), chunk_bytes))
