"""The autoregressive loop: one token per row and step, with a cache, grammars, and guidance in one batched forward.

Shapes: B rows, S streams of guidance (one without), SB forward rows: all rows of the first stream, then of the next, ...
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.generation.choosing import Chooser, Chosen, IdHead
from mmblocks.generation.grammar import BoundedGrammar, Grammar, State
from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.options import Generation, takes_old_keywords
from mmblocks.layers.categorical import VALID_LOGITS
from mmblocks.roles import AnyEmbedder, Cache, Head, Trunk
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.segments import NO_ID
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, PADDING, TokenTable, vectors_of
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
        def outputs(self) -> Named[Head]:
            """Heads."""

        @property
        def mask(self) -> MaskRule | None:
            """A rule of one's own."""

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings (SB, L, D) of a batch."""
        ...


class Step(NamedTuple):
    """One step of all rows.

    Attributes:
        ids: the id of each row; meaningless where the row was done before, ``NO_ID`` where it wrote a vector.
        before: each row's state before the step.
        states: each row's state after it.
        vectors: by row, what heads over vectors wrote.
    """

    ids: Int[Tensor, " B"]
    before: tuple[State, ...]
    states: tuple[State, ...]
    vectors: Mapping[int, Float[Tensor, " D2"]]


@takes_old_keywords
@torch.no_grad()
def generate_ids(
    model: IdModel,
    prompt: Batch,
    grammar: Grammar | Sequence[Grammar],
    options: Generation | None = None,
    *,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """Continues every row of a left-padded prompt until all are done or ``options.max_tokens`` are written.

    Args:
        model: reads and writes ids.
        prompt: B rows; with guidance SB: all rows with their condition, then all rows of the next stream, ...
        grammar: what may follow; one for all rows, or one for each of the B.
        options: how they are continued; ``Generation()`` if None.
        cache: an empty cache for SB rows; by default one that just fits. See ``trunks.caches.kv_cache``.

    Raises:
        ValueError: a prompt that is padded on the right, breaks the grammar, does not fit the cache, or whose rows are not a
            multiple of the streams; no ``max_tokens`` and a grammar without a limit; logits that hold NaN or infinity, or allow
            no id.
    """
    options = options or Generation()
    guide = as_guidance(options.guidance)
    rows = check_prompt(prompt, guide.num_streams)
    grammars = _one_each(grammar, rows)
    states = tuple(
        grammar.start([i for i in row if i != NO_ID]) for grammar, row in zip(grammars, prompt.ids[:rows].tolist(), strict=True)
    )
    max_tokens = most_tokens(options, grammars, states)
    choose = Chooser(
        model.outputs,
        id_head_of(model.outputs, options.head),
        guidance=guide,
        sampling=options.sampling,
        hooks=options.hooks,
        generator=options.generator_on(prompt.ids.device),
    )
    reader = _Reader(model, _check_cache(cache, model.trunk, prompt, max_tokens), options.input)
    hidden = reader.read_prompt(prompt)
    writer = TableWriter(prompt.table, guide.num_streams, guide.images_only)
    for step in range(max_tokens):
        chosen = choose(hidden, grammars, states, step)
        before, written = states, chosen.ids.tolist()
        _check_sampled(written, step)
        states = tuple(_advance(g, s, i) for g, s, i in zip(grammars, before, written, strict=True))
        yield Step(chosen.ids, before, states, chosen.vectors)
        if step + 1 == max_tokens or all(state.mode == "done" for state in states):
            return
        hidden = reader.read(chosen, writer.next(grammars, before, states), guide.num_streams, grammars, before)


@dataclass
class _Reader:
    """Lets the model read what was written, and gives back the newest hidden states (SB, D)."""

    model: IdModel
    cache: object
    input: str

    def read_prompt(self, prompt: Batch) -> Float[Tensor, "SB D"]:
        return self._forward(self.model.embed(prompt), prompt.table, prompt.mask)[:, -1]

    def read(
        self, chosen: Chosen, table: TokenTable, num_streams: int, grammars: Sequence[Grammar], states: Sequence[State]
    ) -> Float[Tensor, "SB D"]:
        vectors = {row: (grammars[row].describe(states[row]).input, value) for row, value in chosen.vectors.items()}
        ids = chosen.ids.clamp(min=0) if vectors else chosen.ids
        embeds = self._embed(self.input, ids) if len(vectors) < len(ids) else None
        for name in sorted({str(name) for name, _ in vectors.values()}):
            rows = [row for row, (own, _) in vectors.items() if own == name]
            made = self._embed(name, torch.stack([vectors[row][1] for row in rows]))
            embeds = made.new_zeros(len(ids), made.shape[-1]) if embeds is None else embeds
            embeds = embeds.index_copy(0, torch.tensor(rows, device=made.device), made.to(embeds.dtype))
        if embeds is None:
            raise ValueError("no row has a token to read")
        return self._forward(embeds.repeat(num_streams, 1)[:, None], table, None)[:, 0]

    def _embed(self, name: str, values: Tensor) -> Tensor:
        return vectors_of(self.model.inputs[name](values))

    def _forward(self, embeds: Tensor, table: TokenTable, lowered: Mask | None) -> Tensor:
        # A cache of a trunk of one's own need not have either.
        mask_for, run = (getattr(self.cache, name, None) for name in ("mask_for", "run"))
        mask = (self.model.mask or lowered) if mask_for is None else mask_for(table, self.model.mask, lowered)
        if run is not None:
            return run(self.model.trunk, embeds, table, mask)
        return self.model.trunk(embeds, table, self.cache, mask=mask)


class TableWriter:
    """Tables of the tokens that are written, one column at a time, for all streams."""

    def __init__(self, prompt: TokenTable, num_streams: int, images_only: bool) -> None:
        length = prompt.shape[1]
        self.newest = prompt.slice(length - 1, length)
        self.document = self.newest.document
        self.num_streams, self.images_only = num_streams, images_only
        self.first_span = prompt.span.amax(dim=1, keepdim=True) + 1

    def next(self, grammars: Sequence[Grammar], before: Sequence[State], after: Sequence[State]) -> TokenTable:
        """The column of the tokens that led from one state to the other."""
        described = [grammar.describe(state) for grammar, state in zip(grammars, before, strict=True)]
        modality = self._column([d.modality for d in described])
        in_span = self._column([d.in_span for d in described])
        unread = self._column([state.mode == "done" for state in before])
        if self.images_only:  # the other streams skip text
            skipped = self._column([not (a.in_image or b.in_image) for a, b in zip(before, after, strict=True)])
            skipped[: len(before)] = False
            unread = unread | skipped
        self.newest = TokenTable(
            modality=torch.where(unread, PADDING, modality),
            document=torch.where(unread, PADDING, self.document),
            span=torch.where(in_span, self.first_span + self._column([state.num_images for state in before]), NO_SPAN),
            grid=torch.tensor([d.grid for d in described], device=modality.device)[:, None].repeat(self.num_streams, 1, 1),
            order=self.newest.order + 1,
            noisy=torch.zeros_like(unread),
            target=torch.full_like(self.newest.target, NO_HEAD),
        )
        return self.newest

    def _column(self, values: list[int] | list[bool]) -> Tensor:
        return torch.tensor(values, device=self.newest.document.device)[:, None].repeat(self.num_streams, 1)


def _check_sampled(written: Sequence[int], step: int) -> None:
    """The host has the ids by now; on a GPU the logits have not been looked at yet."""
    broken = [row for row, next_id in enumerate(written) if next_id < NO_ID]
    if broken:
        raise ValueError(
            f"in step {step} the logits of rows {broken} hold NaN or infinity, or are all minus infinity; {VALID_LOGITS}"
        )


def _advance(grammar: Grammar, state: State, next_id: int) -> State:
    return state if state.mode == "done" else grammar.advance(state, next_id)


def _one_each(grammar: Grammar | Sequence[Grammar], rows: int) -> list[Grammar]:
    grammars = list(grammar) if isinstance(grammar, Sequence) else [grammar] * rows
    if len(grammars) != rows:
        raise ValueError(f"{len(grammars)} grammars for {rows} rows; accepted: one, or one for each row")
    return grammars


def most_tokens(options: Generation, grammars: Sequence[Grammar], states: Sequence[State]) -> int:
    """Steps at most: as the options say, or as the longest row's grammar knows."""
    if options.max_tokens is not None:
        return options.max_tokens
    pairs = zip(grammars, states, strict=True)
    known = [grammar.max_tokens(state) if isinstance(grammar, BoundedGrammar) else None for grammar, state in pairs]
    unlimited = [row for row, tokens in enumerate(known) if tokens is None]
    if unlimited:
        raise ValueError(f"max_tokens is None, and the grammar sets rows {unlimited} no limit; accepted: a number of tokens")
    return max(1, *(tokens for tokens in known if tokens is not None))


def id_head_of(outputs: Named[Head], name: str | None) -> IdHead | None:
    """The head of that name, or the only one over ids; None where there is none.

    Raises:
        TypeError: a head of that name that writes no ids.
        ValueError: several heads over ids, and no name.
    """
    over_ids = {own: head for own in outputs if isinstance(head := outputs[own], IdHead)}
    if name is not None:
        if name not in over_ids:
            raise TypeError(f"head is {name!r}, a {type(outputs[name]).__name__}; accepted: one over ids, of {list(over_ids)}")
        return over_ids[name]
    if len(over_ids) > 1:
        raise ValueError(f"the model has heads {list(outputs)}: name the one that writes ids with head=")
    return next(iter(over_ids.values()), None)


def some_id_head_of(outputs: Named[Head], name: str | None) -> IdHead:
    """As ``id_head_of``, where ids alone are written.

    Raises:
        ValueError: no head over ids.
    """
    head = id_head_of(outputs, name)
    if head is None:
        raise ValueError(f"the model has heads {list(outputs)}; accepted: a model with a head over ids")
    return head


def check_prompt(prompt: Batch, num_streams: int) -> int:
    """The number of rows that are continued."""
    if prompt.table.is_padding[:, -1].any():
        raise ValueError("prompt is padded on the right; build it with padding='left', so that rows end together")
    if prompt.ids.shape[0] % num_streams:
        accepted = f"a multiple of {num_streams}: guidance needs as many unconditional as conditional rows in each stream"
        raise ValueError(f"prompt has {prompt.ids.shape[0]} rows; accepted: {accepted}")
    return prompt.ids.shape[0] // num_streams


def _check_cache(cache: Cache | None, trunk: Trunk, prompt: Batch, max_tokens: int) -> object:
    """The cache given, or one that just fits: the last token is written but never read."""
    rows, length = prompt.ids.shape
    needed = length + max_tokens - 1
    if cache is None:
        return trunk.new_cache(rows, needed)
    if cache.length:
        raise ValueError(f"the cache holds {cache.length} tokens; accepted: an empty one for each generation")
    free = cache.free
    if cache.batch != rows or (free is not None and free < needed):
        fitting = f"{rows} rows (rows times streams) of {needed} tokens: a prompt of {length} and {max_tokens} more, less the last"
        raise ValueError(f"the cache has {cache.batch} rows of {free} tokens; accepted: {fitting}")
    return cache
