"""Cross entropy of a linear map's logits in plain PyTorch, some rows at a time: never all N x V logits.

Where the factor of each row's loss is known beforehand (a sum or a mean), gradients are made on the way forward, from the same
logits. Where it is not (``reduction="none"``), the logits are made again on the way back: a fourth matrix product instead of
three, and right for any gradient that comes in.

Shapes: N rows, D width, V vocabulary; a chunk is R rows.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Reduction = Literal["mean", "sum", "none"]

CPU_CHUNK_BYTES = 2**26
"""Of float32 logits at a time. Fewer rows read the weight too often; more gain nothing."""

GPU_CHUNK_BYTES = 2**30
"""A chunk of too few rows leaves a GPU's matrix units waiting for the weight, which each chunk reads again."""


class _Options(NamedTuple):
    """What shapes the loss of a row."""

    chunk_rows: int
    label_smoothing: float
    z_loss: float


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

    Returns:
        The loss, float32 (float64 of float64).

    Raises:
        ValueError: shapes, dtypes, an id range or a reduction that do not fit; on a CPU also a target out of range.

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

    factor = counts.to(_exact(hidden.dtype))
    if row_weight is not None:
        factor = factor * row_weight.detach()
    chunk_bytes = chunk_bytes or (CPU_CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES)
    options = _Options(max(1, chunk_bytes // (4 * (stop - first))), label_smoothing, z_loss)
    with torch.autocast(hidden.device.type, enabled=False):
        if reduction == "none":
            return _PerRow.apply(hidden, weight, bias, target, options) * factor
        if reduction == "mean":
            total = factor.sum()
            factor = factor / torch.where(total == 0, torch.ones_like(total), total)
        return _Summed.apply(hidden, weight, bias, target, factor, options)


def linear_log_prob(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """(N,) log probability of each row's target, without its logits; the options are those of ``linear_cross_entropy``."""
    return -linear_cross_entropy(hidden, weight, target, bias, reduction="none", **options)


class _PerRow(Function):
    """The loss of each row (N,); gradients from logits made again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: _Options) -> Tensor:
        losses = [_Rows(hidden[rows], weight, bias, target[rows], options).losses() for rows in _chunks(hidden, options)]
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.options = options
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=_exact(hidden.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        for rows in _chunks(hidden, ctx.options):
            gradients.add(rows, _Rows(hidden[rows], weight, bias, target[rows], ctx.options).pull(gradient[rows]))
        return *gradients.cast(), None, None


class _Summed(Function):
    """The sum of the rows' losses times their factors; gradients from the same logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: Tensor, options: _Options
    ) -> Tensor:
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        loss = factor.new_zeros(())
        for rows in _chunks(hidden, options):
            part = _Rows(hidden[rows], weight, bias, target[rows], options)
            loss = loss + part.losses().dot(factor[rows])
            if any(ctx.needs_input_grad):
                gradients.add(rows, part.pull(factor[rows]))
        ctx.save_for_backward(*gradients.cast())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if part is None else part * gradient.to(part.dtype) for part in ctx.saved_tensors), None, None, None


class _Rows:
    """The logits of a chunk, less the largest of each row, and the log of the sum of their exponentials."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: _Options) -> None:
        logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
        logits = logits.to(_exact(hidden.dtype))
        self.largest = logits.amax(dim=1)
        self.logits = logits.sub_(self.largest[:, None])
        self.log_sum = self.logits.logsumexp(dim=1)
        self.target, self.options = target, options

    def losses(self) -> Tensor:
        """(R,). What all logits of a row share was taken off first: it would drown small losses in rounding."""
        smoothing, z_loss = self.options.label_smoothing, self.options.z_loss
        wanted = self.logits.gather(1, self.target[:, None])[:, 0]
        if smoothing:
            wanted = (1 - smoothing) * wanted + smoothing * self.logits.mean(dim=1)
        losses = self.log_sum - wanted
        return losses + z_loss * (self.largest + self.log_sum).square() if z_loss else losses

    def pull(self, factor: Tensor) -> Tensor:
        """(R, V), the gradient of the losses times their factors to the logits, whose memory it takes over."""
        smoothing, z_loss = self.options.label_smoothing, self.options.z_loss
        pull = self.logits.sub_(self.log_sum[:, None]).exp_()
        if z_loss:
            pull *= 1 + 2 * z_loss * (self.largest + self.log_sum)[:, None]
        if smoothing:
            pull -= smoothing / pull.shape[1]
        pull.scatter_add_(1, self.target[:, None], pull.new_full((len(pull), 1), smoothing - 1))
        return pull.mul_(factor[:, None])


class _Gradients:
    """Gradients of hidden, weight and bias, gathered chunk by chunk: what many rows share, in float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.inputs = hidden, weight
        self.bias_dtype = None if bias is None else bias.dtype
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=_exact(weight.dtype)) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=_exact(bias.dtype)) if bias is not None and wanted[2] else None

    def add(self, rows: slice, pull: Tensor) -> None:
        """Adds what a chunk's logits pull (R, V)."""
        hidden, weight = self.inputs
        if self.bias is not None:
            self.bias += pull.sum(dim=0)
        pull = pull.to(weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = pull @ weight
        if self.weight is not None:
            if self.weight.dtype == weight.dtype:
                self.weight.addmm_(pull.T, hidden[rows])
            else:
                self.weight += pull.T @ hidden[rows]

    def cast(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of the inputs."""
        weight = None if self.weight is None else self.weight.to(self.inputs[1].dtype)
        bias = None if self.bias is None else self.bias.to(self.bias_dtype)
        return self.hidden, weight, bias


def _chunks(hidden: Tensor, options: _Options) -> list[slice]:
    return [slice(start, start + options.chunk_rows) for start in range(0, len(hidden), options.chunk_rows)]


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What is summed in: float32, or float64 for those who ask for it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
