"""How heads of whole spans write while a model generates: pass after pass over a span, on the cache of what came before it.

A pass that is not kept is forgotten, so that the cache of the prompt stays as it is; the finished span is then read anew.

Shapes: B rows, S streams of guidance, SB rows of all streams, N tokens of the spans of a head, D width.
"""

import math
from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor

from mmblocks.generation.grammar import Described, Grammar, SpanGrammar, State
from mmblocks.generation.guidance import Guidance, SpanGuide
from mmblocks.generation.options import Generation
from mmblocks.generation.reading import IdModel, Newest, Reader, SpanModel
from mmblocks.generation.tables import Chunk, TableWriter
from mmblocks.generation.trunk_states import Documents, documents_of
from mmblocks.layers.spans import Read, part_of, rows_of
from mmblocks.roles import SpanHead
from mmblocks.sequence.pieces import Piece, span_grid, span_piece, span_steps
from mmblocks.sequence.segments import Segment, codes
from mmblocks.sequence.spans import Pass, SpanLayout, Spans
from mmblocks.sequence.tokens import TokenTable
from mmblocks.vocabulary.grid_format import GridFormat


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
    """Rows whose next span the same head writes, and what the grammar says of each."""

    head: str
    input: str
    told: dict[int, Described]


@dataclass
class SpanWriter:
    """Lets heads of whole spans write.

    Args:
        reader: lets the model read whose heads they are.
        tables: tables of what is read.
        guidance: how streams become one.
        options: how rows are continued.
        possible: whether a grammar of the rows knows spans.
        seed: of the randomness of all spans; found when the first is written.
    """

    reader: Reader
    tables: TableWriter
    guidance: Guidance
    options: Generation
    possible: bool
    seed: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.options.writing if name not in self.reader.model.outputs]
        if unknown:
            raise ValueError(f"writing is for heads {unknown}; the model's heads: {list(self.reader.model.outputs)}")

    def __call__(
        self, grammars: Sequence[Grammar], states: Sequence[State], newest: Newest
    ) -> Coroutine[Shown, None, dict[int, WrittenSpan]]:
        """Writes the spans of all rows that have one next; ``newest`` gets the states after what stays in the cache."""
        if not self.possible:
            return {}
        groups: dict[tuple[str, str, tuple[int, ...], GridFormat | None], dict[int, Described]] = {}
        for row, one in enumerate(map(_described, grammars, states)):
            if one is not None and one.writes == "span":
                reads = self.reader.input if one.input is None else one.input
                alike = () if layout_of(self.reader.model, str(one.head)).mixed else one.size
                groups.setdefault((str(one.head), reads, alike, one.format), {})[row] = one
        written: dict[int, WrittenSpan] = {}
        for (head, reads, _, _), told in groups.items():
            sources = tuple(self._source(row, states[row].num_images) for row in told)
            written.update((yield from self._write(_Group(head, reads, told), grammars, states, newest, sources)))
        return written

    def num_tokens(self, grammar: Grammar, state: State) -> int:
        """How many tokens a row writes next: a whole span's, or one."""
        described = _described(grammar, state) if self.possible else None
        if described is None or described.writes != "span":
            return 1
        return layout_of(self.reader.model, str(described.head)).count(described.size)

    def _write(
        self,
        group: _Group,
        grammars: Sequence[Grammar],
        states: Sequence[State],
        newest: Newest,
        sources: tuple[Generator, ...],
    ) -> Coroutine[Shown, None, dict[int, WrittenSpan]]:
        layout = layout_of(self.reader.model, group.head)
        head = cast(SpanHead, self.reader.model.outputs[group.head])
        pieces = {row: _formatted(layout, group, one, one.format) for row, one in group.told.items() if one.format is not None}
        chunks = {row: _chunk_of(pieces[row], layout) if row in pieces else _chunk(layout, one) for row, one in group.told.items()}
        table = self.tables.block(chunks, len(grammars), noisy=layout.context == "clean")
        ids = [piece.span.ids for piece in pieces.values() if piece.span is not None and piece.span.ids is not None]
        spans = self._spans(layout, group, chunks)._replace(generators=sources, ids=torch.cat(ids) if ids else None)
        documents = None
        if layout.states == "document":
            documents = documents_of(self.reader.read_so_far(layout.layers), spans, table, len(grammars), layout.lead)
            spans = spans._replace(contexts=documents.counts)
        guide = SpanGuide(guidance=self.guidance, writes=layout.writes)
        writing = head.write(spans, guide=guide, generator=sources[0], **self.options.writing.get(group.head, {}))
        kept, index = False, 0
        values: Tensor | list[Tensor] = []
        try:
            one = next(writing)
            while True:
                if self.options.previews and one.shown is not None:
                    for row, values in zip(group.told, _by_span(one.shown, spans), strict=True):
                        yield Shown(row, Preview(span_grammar(grammars[row]).span(states[row], values), index))
                index += 1
                kept = kept or one.keep
                one = writing.send(self._pass(spans, layout, one, table, newest, documents))
        except StopIteration as stop:
            values = stop.value
        if kept:
            self.tables.count(table, dict.fromkeys(group.told, 1), len(grammars))
        made = {}
        for (row, told), own in zip(group.told.items(), _by_span(values, spans), strict=True):
            count = layout.count(told.size)
            made[row] = WrittenSpan(span_grammar(grammars[row]).span(states[row], own), count, kept)
        return made

    def _pass(
        self, spans: Spans, layout: SpanLayout, one: Pass, table: TokenTable, newest: Newest, documents: Documents | None
    ) -> Tensor:
        """The states (S, n, D) of one pass."""
        if documents is not None and one.part is not None:
            raise ValueError(f"part is {one.part}; accepted with states of whole documents: None")
        streams, rows = self.reader.num_streams, table.shape[0] // self.reader.num_streams
        spans, first, stop = part_of(spans, layout, one.part, table.shape[1])
        table, length = table.slice(first, stop), stop - first
        embeds, beside = rows_of(self.reader.model.inputs, [Read(spans, one.reading)], rows, length, streams)
        hidden = self.reader.forward(embeds, table, beside=beside, rule=one.mask, watch=True)
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

    def _spans(self, layout: SpanLayout, group: _Group, chunks: Mapping[int, Chunk]) -> Spans:
        """The spans of the group, as tokens of the first stream's rows, which end together."""
        length, lead = max(chunk.num_tokens for chunk in chunks.values()), layout.lead
        begins = {row: (row + 1) * length - chunk.num_tokens for row, chunk in chunks.items()}
        places = torch.cat([torch.arange(begin + lead, (row + 1) * length) for row, begin in begins.items()])
        spans = Spans(
            input=group.input,
            sizes=tuple(one.size for one in group.told.values()),
            counts=tuple(chunk.num_tokens - lead for chunk in chunks.values()),
            grid=torch.cat([chunk.grid[lead:] for chunk in chunks.values()]),
            places=places,
            leads=torch.cat([torch.arange(begin, begin + lead) for begin in begins.values()]),
            states=places,
            values=None,
            given={name: self._given(name, list(chunks)) for name in self.options.given},
            weight=None,
            continues=tuple(chunks),
            patch=layout.patch,
        )
        return spans.to(self.tables.order.device)

    def _source(self, row: int, index: int) -> Generator:
        """The randomness of a row's span, which follows from the seed, the row and how many spans it has written."""
        source = self.options.generator
        if isinstance(source, Sequence):
            own, row = self._seed(source[row]), 0  # as if the row stood alone
        else:
            own = self.seed = self._seed(source) if self.seed is None else self.seed
        mixed = (own * 1_000_003 + row) * 1_000_003 + index
        return Generator(self.tables.order.device).manual_seed(mixed % 2**63)

    @staticmethod
    def _seed(source: Generator | int | None) -> int:
        device = source.device if isinstance(source, Generator) else "cpu"
        return source if isinstance(source, int) else int(torch.randint(2**62, (), generator=source, device=device))

    def _given(self, name: str, rows: list[int]) -> Tensor:
        """What is given of some rows, stream after stream."""
        values = self.options.given[name]
        return values.unflatten(0, (self.reader.num_streams, -1))[:, rows].flatten(0, 1)


def layout_of(model: IdModel, name: str) -> SpanLayout:
    """The layout of the head of that name.

    Raises:
        TypeError: a model whose heads write no spans.
        ValueError: another head.
    """
    if not isinstance(model, SpanModel):
        raise TypeError(f"a span is to be written by a {type(model).__name__}; accepted: a model such as MultimodalModel")
    writers = span_layouts(model)
    if name not in writers:
        raise ValueError(f"the grammar lets head {name!r} write whole spans; accepted: heads that do, {list(writers)}")
    return writers[name]


def span_layouts(model: IdModel) -> dict[str, SpanLayout]:
    """The layouts of all heads of whole spans, by name."""
    return {name: head.span for name in model.outputs if isinstance(head := model.outputs[name], SpanHead)}


def most_leads(model: IdModel) -> int:
    """How many tokens of the head's own come before a span, at most."""
    return max((layout.lead for layout in span_layouts(model).values()), default=0)


def more_tokens(model: IdModel, grammar: Grammar, state: State) -> int:
    """How many tokens more than values a row writes next; below 0 for fewer."""
    described = _described(grammar, state)
    if described is None or described.writes != "span":
        return 0
    return layout_of(model, str(described.head)).count(described.size) - math.prod(described.size)


def _described(grammar: Grammar, state: State) -> Described | None:
    return None if state.mode == "done" else grammar.describe(state)


def span_grammar(grammar: Grammar) -> SpanGrammar:
    """The grammar, which must know spans."""
    if not isinstance(grammar, SpanGrammar):
        raise TypeError(f"{type(grammar).__name__} describes a span and has no methods span and read_back; accepted: a SpanGrammar")
    return grammar


def _formatted(layout: SpanLayout, group: _Group, one: Described, form: GridFormat) -> Piece:
    """The tokens of a span of codes that is to be written, with the ids that are given."""
    if not layout.structure:
        raise ValueError(
            f"head {group.head!r} writes codes of a format; accepted: a head whose layout takes structure, MaskedCodesHead"
        )
    blank = codes(torch.zeros(one.size, dtype=torch.long), form, target=group.head, input=group.input, modality=one.modality)
    return span_piece(blank.piece(None, {}), layout)


def _chunk_of(piece: Piece, layout: SpanLayout) -> Chunk:
    """What the table says of a piece, whose opening has been read already."""
    zeros = torch.zeros(piece.num_tokens, dtype=torch.long)
    return Chunk(piece.modality, piece.in_span, piece.grid, zeros, zeros - layout.opening)


def _chunk(layout: SpanLayout, described: Described) -> Chunk:
    """The tokens of a span that is to be written, one for each value."""
    grid = span_grid(layout, described.size)
    everything = torch.ones(len(grid), dtype=torch.bool)
    modality = layout.modalities(torch.full((len(grid),), described.modality))
    return Chunk(modality, everything, grid, torch.zeros(len(grid), dtype=torch.long), span_steps(layout, len(grid) - layout.lead))


def _by_span(values: Tensor | list[Tensor], spans: Spans) -> Iterator[Tensor]:
    """What was written, span by span."""
    if isinstance(values, list):
        return iter(values)
    if spans.patch > 1:
        return (one.flatten(0, -2) for one in spans.maps(values))
    count = [int(torch.Size(size).numel()) for size in spans.sizes]
    return iter(values.split(list(spans.counts) if len(values) == spans.num_tokens else count))
