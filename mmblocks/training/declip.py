"""DeCLIP's further objectives on the same pairs of image and text: from images alone, from second views, from similar texts.

Each is a loss by itself; DeCLIP adds them to CLIP's, 0.2 of each and 0.4 of CLIP's own. What the text tower learns from texts alone
is to fill in masked words: a ``LMHead``'s loss at the masked places.

Shapes: B pairs, E width of the embeddings, D of SimSiam's projections, V views, Q texts that are remembered.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from mmblocks.ops.nearest_code import nearest_code
from mmblocks.training.contrastive import ClipOptions, clip_loss, gathered, num_processes


def self_supervision_loss(
    predictions: Sequence[Float[Tensor, "B D"]], projections: Sequence[Float[Tensor, "B D"]]
) -> Float[Tensor, ""]:
    """SimSiam's loss of two views of the same images: what is predicted from the one view against what the other is, both ways.

    Args:
        predictions: of both views, from a small network that sits on the projections.
        projections: of both views; no gradient flows through them here, only through the predictions.

    Returns:
        The negative cosine, from -1 to 1.

    Raises:
        ValueError: not two views, or shapes that differ.

    Source: SimSiam (arXiv 2011.10566), as DeCLIP (arXiv 2110.05208) takes it for its images.
    """
    shapes = {tuple(view.shape) for view in (*predictions, *projections)}
    if len(predictions) != 2 or len(projections) != 2 or len(shapes) != 1:
        found = f"{len(predictions)} and {len(projections)} views of shapes {sorted(shapes)}"
        raise ValueError(f"predictions and projections are {found}; accepted: two of each, all of one shape")
    pairs = zip(predictions, reversed(projections), strict=True)
    cosines = [cosine_similarity(prediction.float(), other.detach().float(), dim=-1).mean() for prediction, other in pairs]
    return -torch.stack(cosines).mean()


def multi_view_loss(
    images: Sequence[Float[Tensor, "B E"]],
    texts: Sequence[Float[Tensor, "B E"]],
    scale: Float[Tensor, ""],
    **options: Unpack[ClipOptions],
) -> Float[Tensor, ""]:
    """The mean of CLIP's loss over all pairs of a view of the image and a view of the text, but for that of the two first.

    Args:
        images: embeddings of views of the same images, the one that CLIP's own loss sees first.
        texts: embeddings of views of their texts, likewise.
        scale: as for ``clip_loss``.
        options: of ``clip_loss``.

    Raises:
        ValueError: a single view of both; embeddings that do not match.

    Source: DeCLIP (arXiv 2110.05208), with two views each.
    """
    pairs = [(image, text) for image in images for text in texts][1:]
    if not pairs:
        raise ValueError(f"there are {len(images)} views of images and {len(texts)} of texts; accepted: a second one of either")
    return torch.stack([clip_loss(image, text, scale, **options).loss for image, text in pairs]).mean()


class TextMemory(nn.Module):
    """The embeddings of the last texts that were seen, and the most similar one of them to each new text.

    Args:
        dim: E.
        size: Q; 65536 in DeCLIP.

    Raises:
        ValueError: a size below one.

    Source: DeCLIP (arXiv 2110.05208), after NNCLR (arXiv 2104.14548).
    """

    texts: Tensor
    count: Tensor

    def __init__(self, *, dim: int, size: int = 65536) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; accepted: at least 1")
        self.register_buffer("texts", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, text: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """The most similar remembered text of each.

        Raises:
            ValueError: nothing is remembered yet.
        """
        known = self.texts[: int(self.count)]
        if not len(known):
            raise ValueError("no text is remembered yet; accepted: after the first call of remember")
        return known[nearest_code(text.detach().float(), known, metric="dot")].to(text.dtype)

    @torch.no_grad()
    def remember(self, text: Float[Tensor, "B E"]) -> None:
        """Takes in these texts, of all processes, and forgets the oldest ones for them."""
        if num_processes() > 1:
            text = gathered(text, False, keep_own=False, group=None)
        size, seen = len(self.texts), int(self.count)
        text = normalize(text.detach().to(self.texts), dim=-1)[-size:]
        kept = self.texts[:seen][max(0, seen + len(text) - size) :]
        known = torch.cat([kept, text])
        self.texts[: len(known)] = known
        self.count.fill_(len(known))


def nearest_neighbour_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    memory: TextMemory,
    **options: Unpack[ClipOptions],
) -> Float[Tensor, ""]:
    """CLIP's loss of the images and, in place of each text, the most similar one that was seen before.

    The texts are remembered afterwards, while gradients are computed. As long as nothing is remembered the loss is 0.

    Args:
        image: embeddings of length one.
        text: row by row the partners of ``image``.
        scale: as for ``clip_loss``.
        memory: of the texts.
        options: of ``clip_loss``.

    Raises:
        ValueError: embeddings that do not match.

    Source: DeCLIP (arXiv 2110.05208).
    """
    loss = clip_loss(image, memory(text), scale, **options).loss if int(memory.count) else image.sum() * 0
    if torch.is_grad_enabled():
        memory.remember(text)
    return loss
