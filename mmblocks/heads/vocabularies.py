"""Language-modelling heads for vocabularies that were put together: tied, extended, one for each modality, several ids at once.

Shapes: N rows, D width, V vocabulary, K ids that are predicted at once.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.language_models import head_config
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.heads.language import LMHead
from mmblocks.layers.categorical import GREEDY, Sampling
from mmblocks.layers.losses.row_losses import check_shape, weighted


def _with_a_table(layout: Layout) -> Layout:
    """The layout of a head that is the embedding's tensor, for one that holds the embedding."""

    def config(published: Mapping[str, Any]) -> dict[str, Any]:
        arguments = head_config(published, tied=True)
        return {name: arguments[name] for name in ("scale", "softcap") if name in arguments}

    return replace(layout, rules=(Rule("model.embed_tokens.weight", "table.weight"),), config=config)


class TiedLMHead(LMHead):
    """An ``LMHead`` whose rows are those of an embedding: one tensor, learned by both.

    Args:
        table: a Block whose ``weight`` is (V, D), such as the ``TextEmbedding`` that the model reads ids with.
        scale: as for ``LMHead``; the table's own scale is for reading ids alone.
        softcap: likewise.

    Published: language models whose head is their embedding, with the part that was read from them:
    ``from_pretrained(folder, table=...)``.

    Examples:
        >>> import torch
        >>> from mmblocks import TextEmbedding
        >>> from mmblocks.heads import TiedLMHead
        >>> embedding = TextEmbedding(vocab_size=32, dim=8)
        >>> head = TiedLMHead(table=embedding)
        >>> hidden = torch.randn(3, 8)
        >>> torch.equal(head.sample(hidden), (hidden @ embedding.weight.T).argmax(dim=1))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = tuple(_with_a_table(one) for one in LMHead.layouts if one.name == "llama-tied")

    table: nn.Module

    def __init__(self, *, table: Block, scale: float = 1.0, softcap: float | None = None) -> None:
        vocab_size, dim = table.get_parameter("weight").shape
        # No values of its own: its weight is the table's.
        with torch.device("meta"):
            super().__init__(dim=dim, vocab_size=vocab_size, scale=scale, softcap=softcap)
        del self.weight
        self.table = table

    @property
    def rows(self) -> Float[Tensor, "V D"]:
        """The table's weight."""
        return self.table.get_parameter("weight")


@torch.no_grad()
def extend_vocabulary(weight: Float[Tensor, "V D"], num_new: int, *, generator: Generator | None = None) -> Float[Tensor, "V2 D"]:
    """Rows for new ids, below the old ones: the mean of the old rows, plus a hundredth of their spread.

    With the mean alone no new id would be likelier than an average old one (Emu); the spread tells new ids apart.

    Raises:
        ValueError: fewer than one new id.
    """
    if num_new < 1:
        raise ValueError(f"num_new is {num_new}; accepted: 1 or more")
    old = weight.float()
    noise = torch.empty(num_new, weight.shape[1], device=weight.device).normal_(generator=generator)
    new = old.mean(dim=0) + 0.01 * old.std(dim=0) * noise
    return torch.cat([weight, new.to(weight.dtype)])


def train_rows_only(weight: nn.Parameter, start: int, stop: int | None = None) -> Any:
    """Lets only the rows ``start:stop`` learn, such as those of visual ids; the others' gradients become zero.

    An optimizer with weight decay still moves the others: give the weight a group without decay. Returns a handle whose
    ``remove()`` ends it.

    Raises:
        ValueError: no rows in the range.
    """
    rows = range(len(weight))[start:stop]
    if not rows:
        raise ValueError(f"rows {start}:{stop} of {len(weight)} are none; accepted: at least one row")

    def keep(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[start:stop] = gradient[start:stop]
        return kept

    return weight.register_hook(keep)


class ModalityLMHead(LMHead):
    """One vocabulary of a modality inside the model's numbering: ids ``first`` to ``first + vocab_size - 1``.

    Several of these, one for each modality, are decoupled vocabularies: no softmax runs over ids that cannot come, and each has
    weights of its own. Targets and samples keep the model's ids.

    Args:
        dim: D.
        vocab_size: ids of this modality.
        first: the model's id of the first.
        init_std: of the initial weights.

    Source: OmniMamba (arXiv 2503.08686), ARMOR (arXiv 2503.06542).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import ModalityLMHead
        >>> head = ModalityLMHead(dim=8, vocab_size=16, first=100)
        >>> ids = head.sample(torch.randn(50, 8))
        >>> bool((ids >= 100).all() and (ids < 116).all())
        True
        >>> tuple(head.loss(torch.randn(50, 8), ids).shape)
        (50,)
    """

    def __init__(self, *, dim: int, vocab_size: int, first: int = 0, init_std: float = 0.02) -> None:
        super().__init__(dim=dim, vocab_size=vocab_size, init_std=init_std)
        self.first = first

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, " N"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """As ``LMHead.loss``, with the model's ids."""
        return super().loss(hidden, target - self.first, weight)

    def sample(
        self,
        hidden: Float[Tensor, "N D"],
        *,
        sampling: Sampling = GREEDY,
        allowed: Bool[Tensor, "N V"] | None = None,
        generator: Generator | None = None,
        gumbel: Float[Tensor, "N V"] | None = None,
    ) -> Int[Tensor, " N"]:
        """As ``LMHead.sample``, in the model's ids; ``allowed`` and ``gumbel`` have this vocabulary's columns."""
        return super().sample(hidden, sampling=sampling, allowed=allowed, generator=generator, gumbel=gumbel) + self.first


class ProjectedLMHead(LMHead):
    """A linear layer with a GELU before the map to logits, both with biases: what Janus writes image codes with.

    Args:
        dim: D.
        vocab_size: number of ids.
        hidden_dim: width between the two; ``dim`` if None.
        init_std: of the initial weights to logits.

    Source: Janus (arXiv 2410.13848; deepseek-ai/Janus).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import ProjectedLMHead
        >>> head = ProjectedLMHead(dim=8, vocab_size=16, hidden_dim=12)
        >>> tuple(head.logits(torch.randn(3, 8)).shape), tuple(head.loss(torch.randn(3, 8), torch.tensor([0, 5, 15])).shape)
        ((3, 16), (3,))
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(self, *, dim: int, vocab_size: int, hidden_dim: int | None = None, init_std: float = 0.02) -> None:
        super().__init__(dim=hidden_dim or dim, vocab_size=vocab_size, init_std=init_std, bias=True)
        self.project = nn.Linear(dim, hidden_dim or dim)

    def logits(self, hidden: Float[Tensor, "*N D"], start: int = 0, stop: int | None = None) -> Float[Tensor, "*N V"]:
        """As ``LMHead.logits``."""
        return super().logits(nn.functional.gelu(self.project(hidden)), start, stop)

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, " N"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """As ``LMHead.loss``."""
        return super().loss(nn.functional.gelu(self.project(hidden)), target, weight)


class MultiTokenHead(Block):
    """K ids from one state, each by a small residual layer of its own and a vocabulary that all share.

    Args:
        dim: D.
        vocab_size: V.
        num_tokens: K: the next id, the one after it, and so on; or the codes of one place.
        init_std: of the initial weights.

    Source: multi-token prediction (arXiv 2404.19737), with the layers of Medusa (arXiv 2401.10774).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MultiTokenHead
        >>> head = MultiTokenHead(dim=8, vocab_size=16, num_tokens=3)
        >>> hidden = torch.randn(5, 8)
        >>> tuple(head.sample(hidden).shape), tuple(head.loss(hidden, torch.randint(16, (5, 3))).shape)
        ((5, 3), (5,))
    """

    def __init__(self, *, dim: int, vocab_size: int, num_tokens: int, init_std: float = 0.02) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}; accepted: 1 or more")
        self.num_tokens = num_tokens
        layers = [nn.Linear(dim, dim) for _ in range(num_tokens)]
        self.layers = nn.ModuleList(layers)
        self.head = LMHead(dim=dim, vocab_size=vocab_size, init_std=init_std)
        for layer in layers:
            nn.init.zeros_(layer.weight)  # at first each is the state itself
            nn.init.zeros_(layer.bias)

    def states(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N K D"]:
        """A state for each id."""
        return torch.stack([hidden + nn.functional.silu(layer(hidden)) for layer in self.layers], dim=1)

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, "N K"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """The mean over the K ids of each row's cross entropies.

        Raises:
            ValueError: shapes that do not fit, or an id out of range (checked on CPU).
        """
        check_shape("target", target, (len(hidden), self.num_tokens))
        losses = self.head.loss(self.states(hidden).flatten(0, 1), target.flatten())
        if weight is not None:
            check_shape("weight", weight, (len(hidden),))
        return weighted(losses.view(-1, self.num_tokens).mean(dim=1), weight)

    def sample(
        self,
        hidden: Float[Tensor, "N D"],
        *,
        sampling: Sampling = GREEDY,
        generator: Generator | None = None,
        gumbel: Float[Tensor, "N K V"] | None = None,
    ) -> Int[Tensor, "N K"]:
        """K ids per row, each sampled by itself."""
        noise = None if gumbel is None else gumbel.flatten(0, 1)
        ids = self.head.sample(self.states(hidden).flatten(0, 1), sampling=sampling, generator=generator, gumbel=noise)
        return ids.view(-1, self.num_tokens)
