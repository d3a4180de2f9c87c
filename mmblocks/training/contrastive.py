"""Losses that pull the embeddings of an image and its text together, over one process or many.

Shapes: B pairs of this process, G pairs of all processes, E width.
"""

from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from mmblocks.ops.linear_cross_entropy import linear_cross_entropy_and_choices

_CHUNK_BYTES = 2**24
"""For similarities that are held at a time. The matrix of all of them, which grows with G squared, never is."""


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


class ClipOptions(TypedDict, total=False):
    """Keywords of ``clip_loss``."""

    label_smoothing: float
    local: bool
    gather_gradients: bool
    group: dist.ProcessGroup | None


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

    Examples:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy, normalize
        >>> from mmblocks.training import clip_loss
        >>> image, text = normalize(torch.randn(4, 8), dim=1), normalize(torch.randn(4, 8), dim=1)
        >>> found = clip_loss(image, text, torch.tensor(10.0))
        >>> logits, pairs = 10 * image @ text.T, torch.arange(4)
        >>> torch.allclose(found.loss, (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2)
        True
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
        rows: Tensor = _Gathered.apply(own, group)
        return rows
    parts = _of_each(own, group)
    if keep_own:
        parts[dist.get_rank(group)] = own
    return torch.cat(parts)


def _of_each(own: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own.detach().contiguous(), group=group)
    return parts


class _Gathered(torch.autograd.Function):
    """The rows of all processes; a row's gradient is the sum of those from every process.

    torch's own has another name in every few releases, and warns of the older ones.
    """

    @staticmethod
    # ctx is torch's, and takes any attribute.
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.num_rows = group, len(own)
        return torch.cat(_of_each(own, group))

    @staticmethod
    # As above.
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.num_rows)[dist.get_rank(ctx.group)], None


def picks(rows: Tensor, columns: Tensor, scale: Tensor, first: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of each row's pick among the columns, and the share of right ones; row 0 belongs to column ``first``."""
    partner = torch.arange(first, first + len(rows), device=rows.device)
    scaled = (rows * scale).to(columns.dtype)
    loss, choices = linear_cross_entropy_and_choices(scaled, columns, partner, label_smoothing=smoothing, chunk_bytes=_CHUNK_BYTES)
    return loss, (choices == partner).float().mean()
