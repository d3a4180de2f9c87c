"""Heads that give one vector for a text, an image or both: for retrieval, and for telling whether two belong together.

Shapes: N rows, D width of the states, E width of the embeddings, B rows of L tokens.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mmblocks.block import Block
from mmblocks.layers.losses.row_losses import check_rows, weighted
from mmblocks.layers.losses.vocabulary_losses import vocabulary_losses
from mmblocks.support.checks import check_finite, is_readable

Pooling = Literal["last", "mean", "first"]


def pool(hidden: Float[Tensor, "B L D"], real: Bool[Tensor, "B L"], pooling: Pooling) -> Float[Tensor, "B D"]:
    """One state per row.

    Args:
        hidden: states.
        real: False at padding, on either side.
        pooling: "last" or "first" token that is no padding, or the "mean" of all of them.

    Raises:
        ValueError: another pooling, or a row of padding alone (checked on CPU).
    """
    if is_readable(real) and not bool(real.any(dim=1).all()):
        raise ValueError("real has a row without tokens; accepted: at least one token a row")
    if pooling == "mean":
        weight = real.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    places = torch.arange(real.shape[1], device=real.device)
    if pooling == "last":
        chosen = torch.where(real, places, -1).argmax(dim=1)
    elif pooling == "first":
        chosen = torch.where(real, -places, -real.shape[1]).argmax(dim=1)
    else:
        raise ValueError(f"pooling is {pooling!r}; accepted: 'last', 'mean', 'first'")
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


class EmbeddingHead(Block):
    """States to embeddings of length one, learned against the embeddings of what belongs together.

    ``loss`` takes the other side's embeddings, row by row; every other row is a wrong answer, from both sides.

    Args:
        dim: D.
        embed_dim: E.
        temperature: similarities are divided by it at first; it is learned.

    Source: FROMAGe (arXiv 2301.13823), GILL (arXiv 2305.17216), VLM2Vec (arXiv 2410.05160).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import EmbeddingHead
        >>> head = EmbeddingHead(dim=16, embed_dim=8)
        >>> hidden = torch.randn(4, 16)
        >>> embeddings = head.sample(hidden)
        >>> torch.allclose(embeddings.norm(dim=1), torch.ones(4))
        True
        >>> bool((head.loss(hidden, embeddings) < head.loss(hidden, embeddings.roll(1, 0))).all())
        True
    """

    def __init__(self, *, dim: int, embed_dim: int, temperature: float = 0.07) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; accepted: above 0")
        self.embed_dim = embed_dim
        self.projection = nn.Linear(dim, embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.full((), 1 / temperature).log())

    def sample(self, hidden: Float[Tensor, "*N D"], *, generator: Generator | None = None) -> Float[Tensor, "*N E"]:
        """The embeddings, in float32; nothing is random."""
        return normalize(self.projection(hidden).float(), dim=-1)

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Float[Tensor, "N E"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """Contrastive loss of each row, the mean of both sides. A row of weight 0 is no wrong answer for others either.

        Raises:
            ValueError: shapes that do not fit, or embeddings that are not finite (checked on CPU).
        """
        check_rows(hidden, target, weight, self.embed_dim)
        check_finite("target", target)
        ours, theirs = self.sample(hidden), normalize(target.float(), dim=-1)
        own, scale = torch.arange(len(hidden), device=hidden.device), self.log_scale.exp().clamp(max=100)
        # Added to every similarity with a row that is left out, of at most 100: it is never the largest, and fits any dtype.
        away = None if weight is None else torch.where(weight == 0, -1e4, 0.0)
        one, other = (vocabulary_losses(a * scale, b, own, away, weight) for a, b in ((ours, theirs), (theirs, ours)))
        return (one + other) / 2


class MatchingHead(Block):
    """Whether an image and a text belong together: two logits of a state that has read both.

    Args:
        dim: D.

    Source: ViLT (arXiv 2102.03334), BLIP-2 (arXiv 2301.12597).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MatchingHead
        >>> head = MatchingHead(dim=16)
        >>> hidden, matches = torch.randn(3, 16), torch.tensor([True, False, True])
        >>> tuple(head.loss(hidden, matches).shape), tuple(head.sample(hidden).shape)
        ((3,), (3,))
        >>> similarity = torch.tensor([[9.0, 8.0, -50.0], [-50.0, 9.0, 8.0], [8.0, -50.0, 9.0]])
        >>> head.hard_negatives(similarity).tolist()  # for each image the text most like its own
        [1, 2, 0]
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, 2)

    def loss(
        self,
        hidden: Float[Tensor, "N D"],
        target: Int[Tensor, " N"] | Bool[Tensor, " N"],
        weight: Float[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " N"]:
        """Cross entropy of each row; ``target`` is 1 where they match.

        Raises:
            ValueError: shapes that do not fit, or other targets than 0 and 1 (checked on CPU).
        """
        check_rows(hidden, target, weight)
        if is_readable(target) and bool(((target != 0) & (target != 1)).any()):
            raise ValueError(f"target holds {sorted(set(target.tolist()))}; accepted: 0 and 1")
        return weighted(cross_entropy(self.classifier(hidden).float(), target.long(), reduction="none"), weight)

    def sample(self, hidden: Float[Tensor, "*N D"], *, generator: Generator | None = None) -> Float[Tensor, "*N"]:
        """The probability that they match, in float32; nothing is random."""
        return self.classifier(hidden).float().softmax(dim=-1)[..., 1]

    def hard_negatives(self, similarity: Float[Tensor, "N N"], *, generator: Generator | None = None) -> Int[Tensor, " N"]:
        """For each row a wrong partner, sampled the likelier the more similar it is.

        Raises:
            ValueError: fewer than two rows, or similarities that are not finite (checked on CPU).
        """
        if len(similarity) < 2:
            raise ValueError(f"similarity has {len(similarity)} rows; accepted: 2 or more, so that there are wrong partners")
        check_finite("similarity", similarity)
        chances = similarity.float().softmax(dim=-1).fill_diagonal_(0) + 1e-12
        return chances.fill_diagonal_(0).multinomial(1, generator=generator)[:, 0]
