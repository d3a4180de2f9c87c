"""SigLIP's loss: whether an image and a text belong together is asked of every pair alone.

Shapes: B pairs of this process, G pairs of all processes, E width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from mmblocks.training.contrastive import add_product, check_pairs, gathered, num_processes

_ENTRIES = 2**21
"""Similarities that are held at a time."""


def siglip_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    gather_gradients: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """For each image the sum over all texts, of all processes, of the cross entropy of "these two belong together" and the truth.

    The mean over the images. Where ``torch.distributed`` is initialised the texts of all processes are gathered; all must have as
    many pairs. The mean of the losses over the processes is that of one process with all pairs, and so is, with
    ``gather_gradients``, the mean of the gradients.

    Args:
        image: embeddings of length one.
        text: row by row the partners of ``image``.
        scale: factor of the similarities: ``exp`` of the learned parameter, which begins at 10.
        bias: learned, added to the scaled similarities; it begins at -10.
        gather_gradients: send the gradients of the gathered texts back to where they came from, as published.
        group: the processes; None for all.

    Raises:
        ValueError: embeddings that do not match.

    Source: SigLIP (arXiv 2303.15343); the same numbers as open_clip's ``SigLipLoss``, which sends texts from neighbour to
    neighbour.
    """
    check_pairs(image, text)
    texts, first = text, 0
    if num_processes(group) > 1:
        texts = gathered(text, gather_gradients, keep_own=True, group=group)
        first = dist.get_rank(group) * len(image)
    return _SigmoidCrossEntropy.apply(image, texts, scale, bias, first)


class _SigmoidCrossEntropy(Function):
    """Some rows at a time, and gradients at once, so that the matrix of all similarities is never held.

    Every pair is a choice of its own, with no softmax over a row: nothing that ``ops.linear_cross_entropy`` computes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        factor, offset = scale.detach().float(), bias.detach().float()
        row_gradient = torch.empty_like(rows)
        column_gradient = torch.zeros_like(columns, dtype=torch.float32)
        loss, scale_gradient, bias_gradient = (torch.zeros((), device=rows.device) for _ in range(3))
        step = max(1, _ENTRIES // len(columns))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            cosines = (part @ columns.T).float()
            logits = cosines * factor + offset
            # The logit of the truth: turned over wherever the two do not belong together.
            own = torch.arange(len(part), device=rows.device)
            logits.neg_()[own, own + start + first] *= -1
            loss -= logsigmoid(logits).sum()
            if not wanted:
                continue
            pull = logits.neg_().sigmoid_().div_(len(rows))
            pull[own, own + start + first] *= -1
            scale_gradient += pull.flatten().dot(cosines.flatten())
            bias_gradient += pull.sum()
            pull = pull.mul_(factor).to(rows.dtype)
            torch.mm(pull, columns.to(rows.dtype), out=row_gradient[start : start + step])
            add_product(column_gradient, pull.T, part)
        if wanted:
            ctx.save_for_backward(row_gradient, column_gradient, scale_gradient, bias_gradient)
            ctx.dtypes = columns.dtype, scale.dtype, bias.dtype
        return loss / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = ctx.saved_tensors
        column_dtype, scale_dtype, bias_dtype = ctx.dtypes
        return (
            rows * gradient.to(rows.dtype),
            (columns * gradient).to(column_dtype),
            (scale * gradient).to(scale_dtype),
            (bias * gradient).to(bias_dtype),
            None,
        )
