"""How a model reads while it generates: the prompt, then what is written, on one cache.

Shapes: B rows, S streams of guidance, SB rows of all streams, L new tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.generation.choosing import Chosen
from mmblocks.generation.grammar import Grammar, State, describe_all
from mmblocks.generation.trunk_states import TrunkStates, Watch
from mmblocks.roles import AnyEmbedder, AnyHead, PlacedEmbedder, Trunk, embed_at
from mmblocks.sequence.batches import Batch, BatchBuilder
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.spans import Conditions, SpanLayout
from mmblocks.sequence.tokens import TokenTable, vectors_of
from mmblocks.support.named import Named


@runtime_checkable
class IdModel(Protocol):
    """A model that reads and writes ids; ``MultimodalModel`` is one."""

    if TYPE_CHECKING:  # since Python 3.12 isinstance does not see what an nn.Module holds as a part

        @property
        def inputs(self) -> Named[AnyEmbedder]:
            """Embedders."""

        @property
        def trunk(self) -> Trunk:
            """Between the two."""

        @property
        def outputs(self) -> Named[AnyHead]:
            """Heads."""

        @property
        def mask(self) -> MaskRule | None:
            """A rule of one's own."""

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings (SB, L, D) of a batch."""
        ...


@runtime_checkable
class SpanModel(IdModel, Protocol):
    """A model whose heads may write whole spans."""

    def batch_builder(self) -> BatchBuilder:
        """Lays segments out for its inputs and heads."""
        ...

    def conditions(self, batch: Batch) -> Conditions | None:
        """What layers are told of the tokens of a batch."""
        ...


class Newest(NamedTuple):
    """Each row's state from which the next token is predicted."""

    states: Float[Tensor, "SB D"]


@runtime_checkable
class _Limited(Protocol):
    """A cache with an end."""

    @property
    def free(self) -> int | None: ...


@runtime_checkable
class _Growing(Protocol):
    """A cache that can be given more room."""

    def grow(self, count: int) -> None: ...


@runtime_checkable
class Forgetting(Protocol):
    """A cache out of which tokens can be taken."""

    def forget(self, count: int) -> None:
        """Takes back the newest tokens."""
        ...


@dataclass
class Reader:
    """Lets the model read, and gives back hidden states.

    Args:
        model: whose trunk reads.
        cache: what has been read.
        input: the embedder of ids.
        num_streams: S.
        may_grow: whether the cache is the loop's own, and may be given more room.
        total_length: how many tokens each row will have in the end, for a trunk that is to be told; None otherwise.
        layouts: of the heads of whole spans that may write: what they are given says which states are kept.

    Attributes:
        states: of what was read last, of the layers that heads are given where the call said so.
    """

    model: IdModel
    cache: object
    input: str
    num_streams: int
    may_grow: bool
    total_length: Int[Tensor, " SB"] | None = None
    layouts: Sequence[SpanLayout] = ()

    def __post_init__(self) -> None:
        self._layers = tuple({layer for layout in self.layouts for layer in layout.layers})
        self._keeps = any(layout.states == "document" for layout in self.layouts)
        self._read: list[tuple[TokenTable, TrunkStates]] = []
        # A cache of a trunk of one's own need not have any of these.
        self._mask_for, self._run = (getattr(self.cache, name, None) for name in ("mask_for", "run"))
        self._limited = self.cache if isinstance(self.cache, _Limited) else None

    def read_prompt(self, prompt: Batch) -> Newest:
        """The prompt, of all streams."""
        conditions = self.model.conditions(prompt) if prompt.copies and isinstance(self.model, SpanModel) else None
        beside = dict(prompt.beside)
        hidden = self.forward(self.model.embed(prompt), prompt.table, prompt.mask, conditions=conditions, beside=beside)
        return self._newest(hidden)

    def read(self, chosen: Chosen, table: TokenTable, grammars: Sequence[Grammar], states: Sequence[State]) -> Newest:
        """One token of each row, an id or a vector."""
        embeds = torch.cat([self.embed_chosen(chosen, grammars, states)] * self.num_streams)
        return self._newest(self.forward(embeds[:, None], table))

    def _newest(self, hidden: Float[Tensor, "SB L D"]) -> Newest:
        """The last states; apart from those that are kept, as they are written over where a span stays in the cache."""
        return Newest(hidden[:, -1].clone() if self._keeps else hidden[:, -1])

    def embed_chosen(
        self, chosen: Chosen, grammars: Sequence[Grammar], states: Sequence[State], only: Sequence[int] | None = None
    ) -> Float[Tensor, "B D"]:
        """The embedding of the newest id or vector of each row, or of some; other rows have zeros, or anything."""
        places: dict[str, list[int]] = {}
        everything = describe_all(grammars, states)
        for row, described in enumerate(everything):
            if states[row].mode != "done" and (only is None or row in only):
                places.setdefault(described.input or self.input, []).append(row)
        told = {name for name in places if isinstance(self.model.inputs[name], PlacedEmbedder)}
        if only is None and len(places) == 1 and not chosen.vectors and not told:
            return self.embed(next(iter(places)), chosen.ids)  # those of finished rows are never read, and may be any
        ids = chosen.ids.clamp(min=0)
        embeds: Tensor | None = None
        for name in sorted(places):
            rows = places[name]
            values = torch.stack([chosen.vectors[row] for row in rows]) if rows[0] in chosen.vectors else ids[rows]
            grid = [everything[row].grid for row in rows] if name in told else []
            made = self.embed(name, values, torch.tensor(grid, device=ids.device) if name in told else None)
            embeds = made.new_zeros(len(ids), made.shape[-1]) if embeds is None else embeds
            embeds = embeds.index_copy(0, torch.tensor(rows, device=made.device), made.to(embeds.dtype))
        if embeds is None:
            raise ValueError("no row has a token to read")
        return embeds

    def embed(self, name: str, values: Tensor, grid: Int[Tensor, "N 3"] | None = None) -> Tensor:
        """What an input makes of ids or vectors, which may be told where they stand."""
        embedder = self.model.inputs[name]
        return vectors_of(embedder(values)) if grid is None else embed_at(embedder, values, grid)

    def forward(
        self,
        embeds: Float[Tensor, "SB L D"],
        table: TokenTable,
        lowered: Mask | None = None,
        *,
        conditions: Conditions | None = None,
        beside: Mapping[str, Any] | None = None,
        rule: MaskRule | None = None,
        watch: bool = False,
    ) -> Float[Tensor, "SB L D2"]:
        """The states of these tokens, which are added to the cache.

        Args:
            embeds: of the tokens.
            table: of the tokens.
            lowered: a mask that is ready, for a cache that asks for none.
            conditions: what layers are told of them.
            beside: what the trunk takes beside, by keyword.
            rule: in place of the model's.
            watch: whether states of layers are kept too.
        """
        self.make_room(embeds.shape[1])
        mask_for, run, rule = self._mask_for, self._run, rule or self.model.mask
        mask = (rule or lowered) if mask_for is None else mask_for(table, rule, lowered)
        more: dict[str, Any] = {**(beside or {}), **({} if conditions is None else {"conditions": conditions})}
        if self.total_length is not None:
            more["total_length"] = self.total_length
        watched = Watch(self.model.trunk, self._layers if watch or self._keeps else ())
        more |= watched.options
        if run is not None and not more:
            hidden: Tensor = run(self.model.trunk, embeds, table, mask)
        else:
            hidden = self.model.trunk(embeds, table, self.cache, mask=mask, **more)
        self.states = watched.states(hidden)
        if self._keeps:
            self._read.append((table, self.states))
        return hidden

    def read_so_far(self, layers: tuple[int, ...]) -> tuple[TokenTable, Float[Tensor, "SB T _"]]:
        """Everything in the cache: its table, and states of these layers. Kept where a head is given whole documents."""
        tables, states = zip(*self._read, strict=True)
        table = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(*tables, strict=True)))
        return table, torch.cat([one.of(layers) for one in states], dim=1)

    def make_room(self, tokens: int) -> None:
        """Sees to it that so many tokens fit.

        Raises:
            ValueError: a cache that was handed in and is too small, or cannot grow.
        """
        free = None if self._limited is None else self._limited.free
        if free is None or free >= tokens:
            return
        if not (self.may_grow and isinstance(self.cache, _Growing)):
            raise ValueError(f"{tokens} tokens do not fit the {free} that the cache has left; accepted: a larger cache")
        self.cache.grow(tokens - free)

    def forget(self, tokens: int) -> None:
        """Takes back the newest tokens.

        Raises:
            TypeError: a cache that cannot.
        """
        if not isinstance(self.cache, Forgetting):
            raise TypeError(f"the cache is a {type(self.cache).__name__}, which cannot forget; accepted: one with a method forget")
        self.cache.forget(tokens)
        if self._keeps:
            self._read.pop()  # what was read last is what is taken back
