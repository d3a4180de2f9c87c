"""The sigmoid loss of a linear map's logits in plain PyTorch, some rows at a time; gradients on the way forward.

Shapes: N rows, D width, V ids; a chunk is R rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from mmblocks.ops.chunked_linear import LinearGradients, chunks, logits_of, multiplied


def linear_sigmoid_loss_reference(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor, chunk_rows: int) -> Tensor:
    """The mean loss of the rows.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target: (N,) ids in range.
        bias: (V,), in the dtype of the sums.
        chunk_rows: R.
    """
    if not torch.is_grad_enabled():  # which a Function is not told
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    loss: Tensor = _SigmoidLoss.apply(hidden, weight, bias, target, chunk_rows)
    return loss


class _SigmoidLoss(Function):
    @staticmethod
    # ctx is torch's, and takes any attribute.
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk_rows: int) -> Tensor:
        gradients = LinearGradients(hidden, weight, bias, ctx.needs_input_grad)
        loss = bias.new_zeros(())
        for rows in chunks(len(hidden), chunk_rows):
            right = target[rows, None]
            # The logit of the truth: turned over wherever the id is not the right one.
            truth = logits_of(hidden[rows], weight).add_(bias).neg_()
            truth.scatter_(1, right, -truth.gather(1, right))
            loss = loss - logsigmoid(truth).sum()
            if any(ctx.needs_input_grad):
                pull = truth.neg_().sigmoid_().div_(len(hidden))
                gradients.add(rows, pull.scatter_(1, right, -pull.gather(1, right)))
                del pull
            del truth  # before the next one is made, not after
        ctx.save_for_backward(*gradients.cast())
        return loss / max(1, len(hidden))

    @staticmethod
    @once_differentiable
    # As above.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *multiplied(ctx.saved_tensors, gradient), None, None
