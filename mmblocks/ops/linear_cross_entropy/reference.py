"""Cross entropy of a linear map's logits in plain PyTorch, some rows at a time: never all N x V logits.

Gradients are made on the way forward, from the same logits, where the factor of each row's loss is known then: three matrix
products. Where it is not (``reduction="none"``), logits may have to be made again on the way back, which is right for any gradient
that comes in, and one or two products more.

Shapes: N rows, D width, V vocabulary; a chunk is R rows.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mmblocks.ops.chunked_linear import LinearGradients, chunks, logits_of, multiplied

Ahead = Literal["yes", "guess", "no"]
"""Whether gradients are made on the way forward. yes: all losses will be summed. guess: they will hardly be multiplied by anything
that differs from row to row, and whether they were can be seen at no cost on the way back."""


class Options(NamedTuple):
    """What shapes the loss of a row, and how it is computed."""

    chunk_rows: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ahead: Ahead = "no"
    choices: bool = False
    scale: float = 1.0
    softcap: float | None = None


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """The losses (N,) times their factors; and each row's likeliest id (N,), if these are asked for.

    Args:
        hidden: (N, D).
        weight: (V, D).
        bias: (V,) or None.
        target: (N,) ids in range.
        factor: (N,) of the rows' losses.
        options: what shapes them, and the size of a chunk.
    """
    if not torch.is_grad_enabled():  # which a Function is not told
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    losses, choices = _Losses.apply(hidden, weight, bias, target, factor, options)
    return losses, choices


class _Losses(Function):
    """The loss of each row times its factor, and its likeliest id."""

    @staticmethod
    # ctx is torch's, and takes any attribute.
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: Tensor, options: Options
    ) -> tuple[Tensor, Tensor]:
        wants = ctx.needs_input_grad[:3]
        # What rows share is a sum over them: only their own gradients can be multiplied row by row later.
        ctx.rows_alone = wants[0] and not any(wants[1:])
        ctx.ahead = any(wants) and (options.ahead != "no" or ctx.rows_alone)
        gradients = LinearGradients(hidden, weight, bias, wants if ctx.ahead else (False, False, False))
        losses, choices = torch.empty_like(factor), target.new_empty(len(target) if options.choices else 0)
        for rows in chunks(len(hidden), options.chunk_rows):
            part = _Rows(hidden[rows], weight, bias, target[rows], options)
            losses[rows] = part.losses() * factor[rows]
            if part.choices is not None:
                choices[rows] = part.choices
            if ctx.ahead:
                gradients.add(rows, part.pull(factor[rows]))
            del part  # before the next one is made, not after
        known = options.ahead == "yes" or ctx.rows_alone
        ctx.save_for_backward(*gradients.cast(), *([None] * 5 if known else [hidden, weight, bias, target, factor]))
        ctx.options = options
        ctx.mark_non_differentiable(choices)
        return losses, choices

    @staticmethod
    @once_differentiable
    # As above.
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight, of_bias, hidden, weight, bias, target, factor = ctx.saved_tensors
        wants, options = ctx.needs_input_grad[:3], ctx.options
        if ctx.ahead and not ctx.rows_alone and (options.ahead == "yes" or bool((gradient == gradient[:1]).all())):
            one = gradient[:1].sum()  # 0 of no rows
            return *multiplied((of_hidden, of_weight, of_bias), one), None, None, None
        if ctx.ahead:
            wants = (False, *wants[1:])
            of_hidden = None if of_hidden is None else (of_hidden * gradient[:, None]).to(of_hidden.dtype)
        if not any(wants):
            return of_hidden, None, None, None, None, None
        gradients = LinearGradients(hidden, weight, bias, wants)
        for rows in chunks(len(hidden), options.chunk_rows):
            part = _Rows(hidden[rows], weight, bias, target[rows], options)
            gradients.add(rows, part.pull(factor[rows] * gradient[rows]))
            del part
        made_again, of_weight, of_bias = gradients.cast()
        return of_hidden if ctx.ahead else made_again, of_weight, of_bias, None, None, None


class _Rows:
    """The exponentials of a chunk's logits, less the largest of each row, whose memory they take over, and what they sum to."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: Options) -> None:
        logits = logits_of(hidden, weight, bias)
        if options.scale != 1:
            logits.mul_(options.scale)
        self.slope: Tensor | None = None
        if options.softcap is not None:
            bent = logits.div_(options.softcap).tanh_()
            self.slope = torch.addcmul(bent.new_ones(()), bent, bent, value=-1)
            logits.mul_(options.softcap)
        self.choices: Tensor | None = None
        if options.choices:
            self.largest, self.choices = logits.max(dim=1)
        else:
            self.largest = logits.amax(dim=1)  # a CPU finds it far faster than its place
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
        """(R, V), the gradient of the losses times their factors to logits before scale and cap; it takes their memory over."""
        smoothing, z_loss = self.options.label_smoothing, self.options.z_loss
        scale = factor / self.sum
        if z_loss:
            scale = scale * (1 + 2 * z_loss * (self.largest + self.log_sum))
        pull = self.weights.mul_(scale[:, None])
        if smoothing:
            pull -= (smoothing / pull.shape[1] * factor)[:, None]
        pull.scatter_add_(1, self.target[:, None], ((smoothing - 1) * factor)[:, None])
        if self.slope is not None:
            pull.mul_(self.slope)
        return pull if self.options.scale == 1 else pull.mul_(self.options.scale)
