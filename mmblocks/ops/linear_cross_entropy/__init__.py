"""Cross entropy of a linear map's logits, which are never all held."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmblocks.ops.dispatch import Impl, chosen, kernel_of, why_not_on
from mmblocks.ops.linear_cross_entropy.reference import Options, exact, linear_cross_entropy_reference

__all__ = ["Reduction", "linear_cross_entropy", "linear_log_prob"]

Reduction = Literal["mean", "sum", "none"]

CPU_CHUNK_BYTES = 2**26
"""Of float32 logits at a time. Fewer rows read the weight too often; more gain nothing."""

GPU_CHUNK_BYTES = 2**30
"""A chunk of too few rows leaves a GPU's matrix units waiting for the weight, which each chunk reads again."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    vocab_range: tuple[int, int] | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """``cross_entropy(hidden @ weight.T + bias, target)``, in float32 and with the memory of a few rows of logits.

    Args:
        hidden: (N, D), of any floating dtype. Logits are rounded to it, as a linear layer rounds them, and summed in float32.
        weight: (V, D), of the same dtype.
        target: (N,) integers: the right id of each row.
        bias: (V,).
        row_weight: (N,) float32 factors of the rows' losses; no gradient flows to them.
        ignore_index: a target that leaves its row out: no loss, no gradient.
        reduction: "mean" is the weighted mean over the rows that count, 0 if none does; "none" gives (N,).
        vocab_range: (first, stop): only these ids take part. A smaller matrix product, and another normaliser.
        z_loss: factor of the squared log of the normaliser, added to each row's loss (PaLM).
        label_smoothing: share of the target that is spread over all ids.
        chunk_bytes: memory for logits; 64 MiB on a CPU and 1 GiB elsewhere if None.
        impl: "eager", "triton" (for evaluation), or "auto"; see ``mmblocks.ops.which``.

    Returns:
        The loss, float32 (float64 of float64).

    Raises:
        ValueError: shapes, dtypes, an id range or a reduction that do not fit; on a CPU also a target out of range.
        RuntimeError: ``impl="triton"`` where the kernel cannot run.

    Source: the chunks are those of Liger-Kernel and cut-cross-entropy (arXiv 2411.09009); z-loss as in PaLM (arXiv 2204.02311).
    """
    first, stop = vocab_range or (0, len(weight))
    _check(hidden, weight, target, bias, row_weight, reduction, label_smoothing)
    if not 0 <= first < stop <= len(weight):
        raise ValueError(f"vocab_range is {vocab_range}; accepted: 0 <= first < stop <= {len(weight)}")
    counts = target != ignore_index
    _check_ids(target, counts, first, stop)
    target = torch.where(counts, target - first, 0)
    weight, bias = weight[first:stop], None if bias is None else bias[first:stop]

    factor = counts.to(exact(hidden.dtype))
    if row_weight is not None:
        factor = factor * row_weight.detach()
    chunk_bytes = chunk_bytes or (CPU_CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES)
    options = Options(max(1, chunk_bytes // (4 * (stop - first))), label_smoothing, z_loss)
    per_row = reduction == "none"
    if reduction == "mean":
        total = factor.sum()
        factor = factor / torch.where(total == 0, torch.ones_like(total), total)
    with torch.autocast(hidden.device.type, enabled=False):
        if chosen("linear_cross_entropy", impl, hidden, weight, bias, label_smoothing=label_smoothing):
            from mmblocks.ops.linear_cross_entropy.triton import linear_cross_entropy_triton

            losses, normaliser = linear_cross_entropy_triton(hidden, weight, target, bias)
            losses = (losses + z_loss * normaliser.square() if z_loss else losses) * factor
            return losses if per_row else losses.sum()
        return linear_cross_entropy_reference(hidden, weight, bias, target, factor, options, per_row=per_row)


def linear_log_prob(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """(N,) log probability of each row's target, without its logits; the options are those of ``linear_cross_entropy``."""
    return -linear_cross_entropy(hidden, weight, target, bias, reduction="none", **options)


@kernel_of("linear_cross_entropy")
def _why_not(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, label_smoothing: float = 0.0) -> str:
    if place := why_not_on(hidden, weight):
        return place
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (hidden, weight, bias)):
        return "a gradient is asked for; it has none"
    if hidden.dtype == torch.float64 or not len(hidden) or label_smoothing:
        return "it takes float32, bfloat16 and float16, at least one row, and no label smoothing"
    return ""


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; accepted: {', '.join(get_args(Reduction))}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; accepted: from 0 to below 1")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(weight):
        shapes = f"hidden has shape {tuple(hidden.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes}; accepted: (N, D) and (V, D), V at least 1")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}; accepted: one floating dtype")
    for name, rows in (("target", target), ("row_weight", row_weight)):
        if rows is not None and rows.shape != hidden.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}; accepted: ({len(hidden)},), one for each row")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted: ({len(weight)},)")


def _check_ids(target: Tensor, counts: Tensor, first: int, stop: int) -> None:
    """Reading values would wait for a GPU and break a compiled graph."""
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = target[counts & ((target < first) | (target >= stop))]
    if len(wrong):
        raise ValueError(f"target holds {int(wrong[0])}; accepted: {first} to {stop - 1}")
