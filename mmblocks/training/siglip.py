"""SigLIP's loss: whether an image and a text belong together is asked of every pair alone.

Shapes: B pairs of this process, G pairs of all processes, E width.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from mmblocks.ops.linear_sigmoid_loss import linear_sigmoid_loss
from mmblocks.training.contrastive import check_pairs, gathered, num_processes

_CHUNK_BYTES = 2**24
"""For similarities that are held at a time."""


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

    Examples:
        >>> import torch
        >>> from torch.nn.functional import logsigmoid, normalize
        >>> from mmblocks.training import siglip_loss
        >>> image, text = normalize(torch.randn(4, 8), dim=1), normalize(torch.randn(4, 8), dim=1)
        >>> loss = siglip_loss(image, text, torch.tensor(10.0), torch.tensor(-10.0))
        >>> signs = 2 * torch.eye(4) - 1
        >>> torch.allclose(loss, -logsigmoid(signs * (10 * image @ text.T - 10)).sum() / 4)
        True
    """
    check_pairs(image, text)
    texts, first = text, 0
    if num_processes(group) > 1:
        texts = gathered(text, gather_gradients, keep_own=True, group=group)
        first = dist.get_rank(group) * len(image)
    partner = torch.arange(first, first + len(image), device=image.device)
    return linear_sigmoid_loss((image * scale).to(texts.dtype), texts, partner, bias, chunk_bytes=_CHUNK_BYTES)
