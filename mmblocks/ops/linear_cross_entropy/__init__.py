"""Cross entropy of a linear map's logits, which are never all held."""

from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from torch import Tensor

from mmblocks.ops.chunked_linear import check_ids, check_map, check_per_row, exact, rows_a_chunk
from mmblocks.ops.dispatch import Impl, chosen, kernel_of, why_not_on
from mmblocks.ops.linear_cross_entropy.reference import Ahead, Options, linear_cross_entropy_reference

__all__ = ["LossAndChoices", "Reduction", "linear_cross_entropy", "linear_cross_entropy_and_choices", "linear_log_prob"]

Reduction = Literal["mean", "sum", "none"]


class LossAndChoices(NamedTuple):
    """The mean loss, and (N,) the likeliest id of each row, of equals the first."""

    loss: Tensor
    choices: Tensor


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
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """``cross_entropy(hidden @ weight.T + bias, target)``, in float32 and with the memory of a few rows of logits.

    Args:
        hidden: (N, D), of any floating dtype. Logits are rounded to it, as a linear layer rounds them, and summed in
            float32. Where a processor only emulates half precision, products are float32 before.
        weight: (V, D), of the same dtype.
        target: (N,) integers: the right id of each row.
        bias: (V,).
        row_weight: (N,) float32 factors of the rows' losses; no gradient flows to them.
        ignore_index: a target that leaves its row out: no loss, no gradient.
        reduction: "mean" is the weighted mean over the rows that count, 0 if none does; "none" gives (N,).
        vocab_range: (first, stop): only these ids take part. A smaller matrix product, and another normaliser.
        z_loss: factor of the squared log of the normaliser, added to each row's loss (PaLM).
        label_smoothing: share of the target that is spread over all ids.
        scale: what the logits are multiplied by, in float32.
        softcap: c where c * tanh(logits / c) takes their place, after the scale (Gemma 2).
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
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}; accepted: above 0, or None")
    if not 0 <= first < stop <= len(weight):
        raise ValueError(f"vocab_range is {vocab_range}; accepted: 0 <= first < stop <= {len(weight)}")
    counts = target != ignore_index
    check_ids(target, counts, first, stop)
    target = torch.where(counts, target - first, 0)
    if vocab_range:  # else not: the gradient of a slice is a copy
        weight, bias = weight[first:stop], None if bias is None else bias[first:stop]

    factor = counts.to(exact(hidden.dtype))
    if row_weight is not None:
        factor = factor * row_weight.detach()
    if reduction == "mean":
        total = factor.sum()
        factor = factor / torch.where(total == 0, torch.ones_like(total), total)
    with torch.autocast(hidden.device.type, enabled=False):
        if chosen(
            "linear_cross_entropy", impl, hidden, weight, bias, label_smoothing=label_smoothing, scale=scale, softcap=softcap
        ):
            from mmblocks.ops.linear_cross_entropy.triton import linear_cross_entropy_triton

            losses, normaliser = linear_cross_entropy_triton(hidden, weight, target, bias)
            losses = (losses + z_loss * normaliser.square() if z_loss else losses) * factor
        else:
            held = (stop - first) * (1 if softcap is None else 2)  # the slopes of the cap, beside the logits
            options = Options(
                rows_a_chunk(hidden, held, chunk_bytes),
                label_smoothing,
                z_loss=z_loss,
                ahead=_ahead(hidden, reduction),
                scale=scale,
                softcap=softcap,
            )
            losses, _ = linear_cross_entropy_reference(hidden, weight, bias, target, factor, options)
        return losses if reduction == "none" else losses.sum()


def linear_cross_entropy_and_choices(
    hidden: Tensor, weight: Tensor, target: Tensor, *, label_smoothing: float = 0.0, chunk_bytes: int | None = None
) -> LossAndChoices:
    """The mean of ``linear_cross_entropy`` over all rows, and what each row would choose, from the same logits.

    Args:
        hidden: (N, D), of any floating dtype.
        weight: (V, D), of the same dtype.
        target: (N,) integers: the right id of each row.
        label_smoothing: share of the target that is spread over all ids.
        chunk_bytes: memory for logits, as for ``linear_cross_entropy``.

    Raises:
        ValueError: as ``linear_cross_entropy``.
    """
    _check(hidden, weight, target, None, None, "mean", label_smoothing)
    check_ids(target, torch.ones_like(target, dtype=torch.bool), 0, len(weight))
    factor = hidden.new_full((len(hidden),), 1 / max(1, len(hidden)), dtype=exact(hidden.dtype))
    options = Options(rows_a_chunk(hidden, len(weight), chunk_bytes), label_smoothing, ahead="yes", choices=True)
    with torch.autocast(hidden.device.type, enabled=False):
        losses, choices = linear_cross_entropy_reference(hidden, weight, None, target, factor, options)
        return LossAndChoices(losses.sum(), choices)


class _LogProbOptions(TypedDict, total=False):
    """Those of ``linear_cross_entropy``, but for the reduction."""

    row_weight: Tensor | None
    ignore_index: int
    vocab_range: tuple[int, int] | None
    z_loss: float
    label_smoothing: float
    chunk_bytes: int | None
    impl: Impl


def linear_log_prob(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Unpack[_LogProbOptions]
) -> Tensor:
    """(N,) log probability of each row's target, without its logits; the options are those of ``linear_cross_entropy``."""
    return -linear_cross_entropy(hidden, weight, target, bias, reduction="none", **options)


@kernel_of("linear_cross_entropy")
def _why_not(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> str:
    if place := why_not_on(hidden, weight):
        return place
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (hidden, weight, bias)):
        return "a gradient is needed; it has none"
    if hidden.dtype == torch.float64 or not len(hidden) or label_smoothing:
        return "it takes float32, bfloat16 and float16, at least one row, and no label smoothing"
    if scale != 1 or softcap is not None:
        return "it takes logits as they are: no scale, and no soft cap"
    return ""


def _ahead(hidden: Tensor, reduction: Reduction) -> Ahead:
    """Whether gradients can be made before it is known what the losses will be multiplied by.

    That is usually one number, as their mean has it. On a CPU a look at the values tells; elsewhere it would wait for the device.
    """
    if reduction != "none":
        return "yes"
    return "guess" if hidden.device.type == "cpu" and not torch.compiler.is_compiling() else "no"


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
    check_map(hidden, weight, target)
    if row_weight is not None:
        check_per_row("row_weight", row_weight, hidden)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted: ({len(weight)},)")
