"""How heads of whole spans write while a model generates: pass after pass over a span, on the cache of what came before it.

A pass that is not kept is forgotten, so that the cache of the prompt stays as it is; the finished span is then read anew.

Shapes: B rows, S streams of guidance, SB rows of all streams, N tokens of the spans of a head, D width.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mmblocks.generation.grammar import Described, Grammar, SpanGrammar, State
from mmblocks.generation.guidance import Guidance, SpanGuide
from mmblocks.generation.reading import Newest, Reader, SpanModel
from mmblocks.generation.tables import Chunk, TableWriter
from mmblocks.generation.trunk_states import Documents, documents_of
from mmblocks.layers.spans import Read, conditions_of, embed_spans
from mmblocks.roles import SpanHead
from mmblocks.sequence.pieces import span_grid, span_steps
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.spans import Pass, SpanLayout, Spans
from mmblocks.sequence.tokens import TokenTable


class Preview(NamedTuple):
    """A span as it looks while it is written.

    Attributes:
        segment: what it would be if it were finished.
        step: 0, 1, ... of its passes.
    """

    segment: Segment
    step: int


class Shown(NamedTuple):
    """A preview, and the row of the prompt that it continues."""

    row: int
    preview: Preview


class WrittenSpan(NamedTuple):
    """A finished span.

    Attributes:
        segment: what it is.
        num_tokens: how many tokens it took.
        kept: whether what was read of it stays in the cache.
    """

    segment: Segment
    num_tokens: int
    kept: bool


class _Group(NamedTuple):
    """Rows whose next span the same head writes, in the same size."""

    head: str
    input: str
    size: tuple[int, ...]
    modality: int
    rows: tuple[int, ...]


@dataclass
class SpanWriter:
    """Lets heads of whole spans write.

    Args:
        reader: lets the model read whose heads they are.
        tables: tables of what is read.
        guidance: how streams become one.
        generator: source of randomness, or a seed.
        given: by name, what heads are told of each of the SB rows beside.
        previews: whether spans are shown as they look in each pass.
        possible: whether a grammar of the rows knows spans.
        seed: of the randomness of all spans; found when the first is written.
    """

    reader: Reader
    tables: TableWriter
    guidance: Guidance
    generator: Generator | int | None
    given: Mapping[str, Tensor]
    previews: bool
    possible: bool
    seed: int | None = None

    def __call__(
        self, grammars: Sequence[Grammar], states: Sequence[State], newest: Newest
    ) -> Coroutine[Shown, None, dict[int, WrittenSpan]]:
        """Writes the spans of all rows that have one next; ``newest`` gets the states after what stays in the cache."""
        if not self.possible:
            return {}
        wanted = {row: one for row, one in enumerate(map(_described, grammars, states)) if one is not None and one.writes == "span"}
        groups: dict[tuple[str, str, tuple[int, ...], int], list[int]] = {}
        for row, one in wanted.items():
            groups.setdefault((str(one.head), str(one.input), one.size, one.modality), []).append(row)
        written: dict[int, WrittenSpan] = {}
        for names, rows in groups.items():
            group = _Group(*names, tuple(rows))
            sources = tuple(self._source(row, states[row].num_images) for row in rows)
            written.update((yield from self._write(group, grammars, states, newest, sources)))
        return written

    def num_tokens(self, grammar: Grammar, state: State) -> int:
        """How many tokens a row writes next: a whole span's, or one."""
        described = _described(grammar, state) if self.possible else None
        if described is None or described.writes != "span":
            return 1
        return self._head(str(described.head))[1].count(described.size)

    def _write(
        self,
        group: _Group,
        grammars: Sequence[Grammar],
        states: Sequence[State],
        newest: Newest,
        sources: tuple[Generator, ...],
    ) -> Coroutine[Shown, None, dict[int, WrittenSpan]]:
        head, layout = self._head(group.head)
        chunk = _chunk(layout, grammars[group.rows[0]].describe(states[group.rows[0]]))
        table = self.tables.block(dict.fromkeys(group.rows, chunk), len(grammars), noisy=layout.context == "clean")
        spans = self._spans(layout, group, chunk)._replace(generators=sources)
        documents = None
        if layout.states == "document":
            documents = documents_of(self.reader.read_so_far(layout.layers), spans, table, len(grammars), layout.lead)
            spans = spans._replace(contexts=documents.counts)
        guide = SpanGuide(guidance=self.guidance, writes=layout.writes)
        writing = head.write(spans, guide=guide, generator=sources[0])
        kept, index = False, 0
        values: Tensor | list[Tensor] = []
        try:
            one = next(writing)
            while True:
                if self.previews and one.shown is not None:
                    for row, values in zip(group.rows, _by_span(one.shown, spans), strict=True):
                        yield Shown(row, Preview(span_grammar(grammars[row]).span(states[row], values), index))
                index += 1
                kept = kept or one.keep
                one = writing.send(self._pass(spans, layout, one, table, newest, documents))
        except StopIteration as stop:
            values = stop.value
        if kept:
            self.tables.count(table, dict.fromkeys(group.rows, 1), len(grammars))
        made = {}
        for row, own in zip(group.rows, _by_span(values, spans), strict=True):
            made[row] = WrittenSpan(span_grammar(grammars[row]).span(states[row], own), layout.count(group.size), kept)
        return made

    def _pass(
        self, spans: Spans, layout: SpanLayout, one: Pass, table: TokenTable, newest: Newest, documents: Documents | None
    ) -> Tensor:
        """The states (S, n, D) of one pass."""
        if documents is not None and one.part is not None:
            raise ValueError(f"part is {one.part}; accepted with states of whole documents: None")
        streams, rows = self.reader.num_streams, table.shape[0] // self.reader.num_streams
        spans, first, stop = _part(spans, layout, one.part, table.shape[1])
        table = table.slice(first, stop)
        length = stop - first
        read = Read(spans, one.reading)
        embedded, leads = embed_spans(self.reader.model.inputs, read, streams)
        embeds = embedded.new_zeros(streams, rows * length, embedded.shape[-1]).index_copy(1, spans.places, embedded)
        if leads is not None:
            embeds = embeds.index_copy(1, spans.leads, leads.to(embeds.dtype))
        conditions = conditions_of([read], rows, length, streams)
        hidden = self.reader.forward(embeds.view(-1, length, embeds.shape[-1]), table, conditions=conditions, watch=True)
        given = self.reader.states.of(layout.layers)
        by_stream = given.view(streams, rows, length, -1)
        if documents is not None:
            states = documents.states(given)
        elif layout.predicts == "next":  # the state before a span's first token is the row's newest
            before = torch.cat([newest.states.view(streams, rows, 1, -1), by_stream[:, :, :-1]], dim=2)
            first_of_span = spans.grid.new_zeros(spans.num_tokens, dtype=torch.bool)
            first_of_span[[sum(spans.counts[:index]) for index in range(spans.num_spans)]] = not layout.lead
            column = torch.where(first_of_span, 0, spans.places % length)
            states = before.flatten(1, 2)[:, spans.places // length * length + column]
        else:
            states = by_stream.flatten(1, 2)[:, spans.places]
        if one.keep:
            read_rows = (~table.is_padding).any(dim=1)
            newest.states.copy_(torch.where(read_rows[:, None], hidden[:, -1], newest.states))
        else:
            self.reader.forget(length)
        return states

    def _head(self, name: str) -> tuple[SpanHead, SpanLayout]:
        model = self.reader.model
        if not isinstance(model, SpanModel):
            raise TypeError(f"a span is to be written by a {type(model).__name__}; accepted: a model such as MultimodalModel")
        if name not in model.outputs or not isinstance(head := model.outputs[name], SpanHead):
            writers = [own for own in model.outputs if isinstance(model.outputs[own], SpanHead)]
            raise ValueError(f"the grammar lets head {name!r} write whole spans; accepted: heads that do, {writers}")
        return head, head.span

    def _spans(self, layout: SpanLayout, group: _Group, chunk: Chunk) -> Spans:
        """The spans of the group, as tokens of the first stream's rows."""
        length, count, lead = chunk.num_tokens, chunk.num_tokens - layout.lead, layout.lead
        begins = torch.tensor(group.rows)[:, None] * length
        places = (begins + torch.arange(lead, length)).flatten()
        spans = Spans(
            input=group.input,
            sizes=(group.size,) * len(group.rows),
            counts=(count,) * len(group.rows),
            grid=chunk.grid[lead:].repeat(len(group.rows), 1),
            places=places,
            leads=(begins + torch.arange(lead)).flatten(),
            states=places,
            values=None,
            given={name: self._given(name, group.rows) for name in self.given},
            weight=None,
        )
        return spans.to(self.tables.order.device)

    def _source(self, row: int, index: int) -> Generator:
        """The randomness of a row's span, which follows from the seed, the row and how many spans it has written."""
        if self.seed is None:
            own = self.generator
            device = own.device if isinstance(own, Generator) else "cpu"
            self.seed = own if isinstance(own, int) else int(torch.randint(2**62, (), generator=own, device=device))
        mixed = (int(self.seed) * 1_000_003 + row) * 1_000_003 + index
        return Generator(self.tables.order.device).manual_seed(mixed % 2**63)

    def _given(self, name: str, rows: tuple[int, ...]) -> Tensor:
        """What is given of some rows, stream after stream."""
        values = self.given[name]
        return values.unflatten(0, (self.reader.num_streams, -1))[:, list(rows)].flatten(0, 1)


def _described(grammar: Grammar, state: State) -> Described | None:
    return None if state.mode == "done" else grammar.describe(state)


def span_grammar(grammar: Grammar) -> SpanGrammar:
    """The grammar, which must know spans."""
    if not isinstance(grammar, SpanGrammar):
        raise TypeError(f"{type(grammar).__name__} describes a span and has no methods span and read_back; accepted: a SpanGrammar")
    return grammar


def _chunk(layout: SpanLayout, described: Described) -> Chunk:
    """The tokens of a span that is to be written."""
    grid = span_grid(layout, described.size)
    everything = torch.ones(len(grid), dtype=torch.bool)
    modality = torch.full((len(grid),), described.modality)
    return Chunk(modality, everything, grid, torch.zeros(len(grid), dtype=torch.long), span_steps(layout, len(grid) - layout.lead))


def _by_span(values: Tensor | list[Tensor], spans: Spans) -> Iterator[Tensor]:
    """What was written, span by span."""
    if isinstance(values, list):
        return iter(values)
    count = [int(torch.Size(size).numel()) for size in spans.sizes]
    return iter(values.split(list(spans.counts) if len(values) == spans.num_tokens else count))


def _part(spans: Spans, layout: SpanLayout, part: tuple[int, int] | None, length: int) -> tuple[Spans, int, int]:
    """The tokens of a pass: their spans, with places in the columns ``first`` to ``stop`` of the block."""
    if part is None:
        return spans, 0, length
    start, end = part
    if len(set(spans.counts)) > 1 or not 0 <= start < end <= spans.counts[0]:
        raise ValueError(f"part is {part} of spans of {spans.counts} tokens; accepted: (first, stop) in spans of one size")
    first = layout.lead + start if start else 0
    stop = layout.lead + end
    inside = torch.arange(spans.num_tokens, device=spans.device) % spans.counts[0]
    chosen = (inside >= start) & (inside < end)

    def moved(places: Tensor) -> Tensor:
        return places // length * (stop - first) + places % length - first

    places = moved(spans.places[chosen])
    leads = spans.leads[:0] if start else moved(spans.leads)
    count = (end - start,) * spans.num_spans
    return spans._replace(counts=count, grid=spans.grid[chosen], places=places, leads=leads, states=places), first, stop
