"""Cross entropy of a linear map's logits in plain PyTorch, some rows at a time: never all N x V logits.

Where the factor of each row's loss is known beforehand (a sum or a mean), gradients are made on the way forward, from the same
logits. Where it is not (``reduction="none"``), the logits are made again on the way back: a fourth matrix product instead of
three, and right for any gradient that comes in.

Shapes: N rows, D width, V vocabulary; a chunk is R rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Options(NamedTuple):
    """What shapes the loss of a row."""

    chunk_rows: int
    label_smoothing: float
    z_loss: float


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: Tensor,
    options: Options,
    *,
    per_row: bool,
) -> Tensor:
    """The losses (N,) times their factors, or their sum.

    Args:
        hidden: (N, D).
        weight: (V, D).
        bias: (V,) or None.
        target: (N,) ids in range.
        factor: (N,) of the rows' losses.
        options: what shapes them, and the size of a chunk.
        per_row: whether each row's loss is wanted.
    """
    if per_row:
        return _PerRow.apply(hidden, weight, bias, target, options) * factor
    return _Summed.apply(hidden, weight, bias, target, factor, options)


class _PerRow(Function):
    """The loss of each row (N,); gradients from logits made again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: Options) -> Tensor:
        losses = [_Rows(hidden[rows], weight, bias, target[rows], options).losses() for rows in _chunks(hidden, options)]
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.options = options
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=exact(hidden.dtype))

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
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: Tensor, options: Options
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
    """The exponentials of a chunk's logits, less the largest of each row, whose memory they take over, and what they sum to."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: Options) -> None:
        logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
        logits = logits.to(exact(hidden.dtype))
        self.largest = logits.amax(dim=1)
        logits.sub_(self.largest[:, None])
        smoothing = options.label_smoothing
        self.wanted = logits.gather(1, target[:, None])[:, 0]
        if smoothing:
            self.wanted = (1 - smoothing) * self.wanted + smoothing * logits.mean(dim=1)
        self.weights = logits.exp_()
        self.sum = self.weights.sum(dim=1)
        self.log_sum = self.sum.log()
        self.target, self.options = target, options

    def losses(self) -> Tensor:
        """(R,). What all logits of a row share was taken off first: it would drown small losses in rounding."""
        losses, z_loss = self.log_sum - self.wanted, self.options.z_loss
        return losses + z_loss * (self.largest + self.log_sum).square() if z_loss else losses

    def pull(self, factor: Tensor) -> Tensor:
        """(R, V), the gradient of the losses times their factors to the logits, whose memory it takes over."""
        smoothing, z_loss = self.options.label_smoothing, self.options.z_loss
        scale = factor / self.sum
        if z_loss:
            scale = scale * (1 + 2 * z_loss * (self.largest + self.log_sum))
        pull = self.weights.mul_(scale[:, None])
        if smoothing:
            pull -= (smoothing / pull.shape[1] * factor)[:, None]
        return pull.scatter_add_(1, self.target[:, None], ((smoothing - 1) * factor)[:, None])


class _Gradients:
    """Gradients of hidden, weight and bias, gathered chunk by chunk: what many rows share, in float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.inputs = hidden, weight
        self.bias_dtype = None if bias is None else bias.dtype
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=exact(weight.dtype)) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=exact(bias.dtype)) if bias is not None and wanted[2] else None

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


def _chunks(hidden: Tensor, options: Options) -> list[slice]:
    return [slice(start, start + options.chunk_rows) for start in range(0, len(hidden), options.chunk_rows)]


def exact(dtype: torch.dtype) -> torch.dtype:
    """What is summed in: float32, or float64 for those who ask for it."""
    return torch.float64 if dtype == torch.float64 else torch.float32
