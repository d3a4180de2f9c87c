"""Losses that pull the embeddings of an image and its text together, over one process or many.

Shapes: B pairs of this process, G pairs of all processes, E width.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_ENTRIES = 2**21
"""Similarities that are held at a time. The matrix of all of them, which grows with G squared, never is."""


class ContrastiveLoss(NamedTuple):
    """A loss, and how often the right partner is the most similar one.

    Attributes:
        loss: the mean over both directions.
        image_to_text: share of images that are most similar to their own text.
        text_to_image: share of texts that are most similar to their own image.
    """

    loss: Float[Tensor, ""]
    image_to_text: Float[Tensor, ""]
    text_to_image: Float[Tensor, ""]


def clip_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    *,
    label_smoothing: float = 0.0,
    local: bool = False,
    gather_gradients: bool = False,
    group: dist.ProcessGroup | None = None,
) -> ContrastiveLoss:
    """CLIP's loss: each image picks its text among those of all processes, and each text its image.

    Where ``torch.distributed`` is initialised, the embeddings of all processes are gathered; all must have as many pairs. With
    ``gather_gradients`` the mean of the losses over the processes, and of its gradients, is that of one process with all pairs.
    Without it no gradient flows back through what other processes sent, as in CLIP's first versions.

    Args:
        image: embeddings of length one.
        text: row by row the partners of ``image``.
        scale: factor of the similarities: ``exp`` of the learned parameter.
        label_smoothing: share of the target that is spread over all partners.
        local: rows of this process alone against the columns of all: the work of a process no longer grows with G squared.
        gather_gradients: send the gradients of what was gathered back to where it came from.
        group: the processes; None for all.

    Raises:
        ValueError: embeddings that do not match, or a share outside [0, 1).

    Source: CLIP (arXiv 2103.00020); EVA-CLIP (arXiv 2303.15389; baaivision/EVA), open_clip.
    """
    check_pairs(image, text)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; accepted: from 0 to below 1")
    images, texts, first = image, text, 0
    if num_processes(group) > 1:
        # A local loss without gathered gradients leaves its own columns without one too.
        images, texts = (gathered(part, gather_gradients, keep_own=not local, group=group) for part in (image, text))
        first = dist.get_rank(group) * len(image) if local else 0
    rows, columns = ((image, text), (texts, images)) if local else ((images, texts), (texts, images))
    terms = [picks(own, others, scale, first, label_smoothing) for own, others in zip(rows, columns, strict=True)]
    (image_loss, image_right), (text_loss, text_right) = terms
    return ContrastiveLoss((image_loss + text_loss) / 2, image_right, text_right)


def num_processes(group: dist.ProcessGroup | None = None) -> int:
    """How many processes there are; one where ``torch.distributed`` is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def check_pairs(image: Tensor, text: Tensor) -> None:
    """Refuses embeddings that are no pairs.

    Raises:
        ValueError: other shapes than (B, E) of both, or no pair at all.
    """
    if image.shape != text.shape or image.ndim != 2 or len(image) == 0:
        raise ValueError(f"image has shape {tuple(image.shape)}, text {tuple(text.shape)}; accepted: (B, E) of both, B at least 1")


def gathered(own: Tensor, gradients: bool, *, keep_own: bool, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in their order: with their gradients, or with none but, if ``keep_own``, that of its own rows."""
    if gradients:
        from torch.distributed.nn.functional import all_gather  # here, since not every build of torch has it

        return torch.cat(all_gather(own, group=group or dist.group.WORLD))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own.detach().contiguous(), group=group)
    if keep_own:
        parts[dist.get_rank(group)] = own
    return torch.cat(parts)


def add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Adds ``first @ second`` to ``total``, in float32; without a product of its own where they are in float32 too."""
    if first.dtype == second.dtype == total.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


def picks(rows: Tensor, columns: Tensor, scale: Tensor, first: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of each row's pick among the columns, and the share of right ones; row 0 belongs to column ``first``."""
    return _ContrastiveCrossEntropy.apply(rows, columns, scale, first, smoothing)


class _ContrastiveCrossEntropy(Function):
    """Some rows at a time, and gradients at once: no more than a few rows of similarities are ever held.

    ``ops.linear_cross_entropy`` does as much for a vocabulary, and cannot stand in here: the share of right picks and the scale's
    gradient come from the same similarities, which it does not hand out, and would cost as much again.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, first: int, smoothing: float) -> tuple[Tensor, Tensor]:
        wants_rows, wants_columns, wants_scale = ctx.needs_input_grad[:3]
        factor = scale.detach().float()
        row_gradient = torch.empty_like(rows) if wants_rows else None
        column_gradient = torch.zeros_like(columns, dtype=torch.float32) if wants_columns else None
        loss, right, scale_gradient = (torch.zeros((), device=rows.device) for _ in range(3))
        step = max(1, _ENTRIES // len(columns))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            cosines = (part @ columns.T).float()
            partner = torch.arange(start, start + len(part), device=rows.device) + first
            logits = cosines * factor
            right += (logits.argmax(dim=1) == partner).sum()
            log_shares = logits.log_softmax(dim=1)
            del logits
            chosen = log_shares.gather(1, partner[:, None])
            loss -= (1 - smoothing) * chosen.sum()
            if smoothing:
                loss -= smoothing * log_shares.mean(dim=1).sum()
            if not (wants_rows or wants_columns or wants_scale):
                continue
            pull = log_shares.exp_().sub_(smoothing / len(columns))
            pull.scatter_add_(1, partner[:, None], torch.full_like(chosen, smoothing - 1)).div_(len(rows))
            if wants_scale:
                scale_gradient += pull.flatten().dot(cosines.flatten())
            pull = pull.mul_(factor).to(rows.dtype)
            if row_gradient is not None:
                torch.mm(pull, columns.to(rows.dtype), out=row_gradient[start : start + step])
            if column_gradient is not None:
                add_product(column_gradient, pull.T, part)
        ctx.save_for_backward(row_gradient, column_gradient, scale_gradient)
        ctx.dtypes = columns.dtype, scale.dtype
        right /= len(rows)
        ctx.mark_non_differentiable(right)
        return loss / len(rows), right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale = ctx.saved_tensors
        column_dtype, scale_dtype = ctx.dtypes
        return (
            None if rows is None else rows * gradient.to(rows.dtype),
            None if columns is None else (columns * gradient).to(column_dtype),
            (scale * gradient).to(scale_dtype) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )
