"""What rows read next where some of them have just written whole spans: those anew as segments, others their newest token.

Rows are padded on the left, so that all of them end together.

Shapes: B rows, S streams of guidance, SB rows of all streams, L tokens of the longest row, D width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.generation.choosing import Chosen
from mmblocks.generation.grammar import Grammar, State
from mmblocks.generation.reading import Newest, Reader, SpanModel
from mmblocks.generation.span_writing import WrittenSpan, span_grammar
from mmblocks.generation.tables import Chunk, TableWriter
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import NO_SPAN, TokenTable


class Rows(NamedTuple):
    """The rows of a step.

    Attributes:
        grammars: of each.
        before, after: its states.
        chosen: ids and vectors that were written.
        spans: by row, whole spans that were.
    """

    grammars: Sequence[Grammar]
    before: Sequence[State]
    after: Sequence[State]
    chosen: Chosen
    spans: Mapping[int, WrittenSpan]

    @property
    def anew(self) -> list[int]:
        """Rows whose finished span is read."""
        return [row for row, one in self.spans.items() if not one.kept and self.after[row].mode != "done"]

    @property
    def single(self) -> list[int]:
        """Rows that read one token."""
        return [row for row, state in enumerate(self.before) if row not in self.spans and state.mode != "done"]


def read_rows(reader: Reader, tables: TableWriter, newest: Newest, rows: Rows) -> Newest:
    """Reads what rows have written; the states after it, and those of before where a row reads nothing."""
    anew, single, count = rows.anew, rows.single, len(rows.grammars)
    laid = _laid(reader, rows, tables) if anew else None
    chunks = {row: _single(rows.grammars[row], rows.before[row]) for row in single}
    if laid is not None:
        chunks.update({row: _of(laid.table, index) for index, row in enumerate(anew)})
    if not chunks:
        return newest
    skipping = [row for row in single if tables.images_only and not (rows.before[row].in_image or rows.after[row].in_image)]
    table = tables.block(chunks, count, skipping=skipping)
    embeds, conditions = _embeds(reader, rows, laid, table.shape[1])
    hidden = reader.forward(embeds.repeat(reader.num_streams, 1, 1), table, conditions=conditions)
    finished = {row: int(rows.after[row].num_images > rows.before[row].num_images) for row in single}
    tables.count(table, finished | dict.fromkeys(anew, 1), count)
    has_token = (~table.is_padding).any(dim=1)[:, None]
    return Newest(torch.where(has_token, hidden[:, -1], newest.states))


def _laid(reader: Reader, rows: Rows, tables: TableWriter) -> Batch:
    """Finished spans as prompts of their own."""
    segments = [span_grammar(rows.grammars[row]).read_back(rows.before[row], rows.spans[row].segment) for row in rows.anew]
    return cast(SpanModel, reader.model).batch_builder()(segments, padding="left", learn=False).to(tables.order.device)


def _single(grammar: Grammar, state: State) -> Chunk:
    """The token that is written in this state."""
    described = grammar.describe(state)
    own = torch.tensor([described.modality])
    return Chunk(own, torch.tensor([described.in_span]), torch.tensor([described.grid]), own * 0, own * 0)


def _of(table: TokenTable, index: int) -> Chunk:
    """The tokens of a row of their own."""
    real = ~table.is_padding[index]
    row = TokenTable(*(column[index, real].cpu() for column in table))
    return Chunk(row.modality, row.span != NO_SPAN, row.grid, row.span, row.order - row.order[0])


def _embeds(reader: Reader, rows: Rows, laid: Batch | None, length: int) -> tuple[Float[Tensor, "B L D"], Conditions | None]:
    """What all rows read, and what layers are told."""
    count, single, anew = len(rows.grammars), rows.single, rows.anew
    embeds, conditions = None, None
    if laid is not None:
        model = cast(SpanModel, reader.model)
        read, told = model.embed(laid), model.conditions(laid)
        embeds = read.new_zeros(count, length, read.shape[-1])
        embeds[anew, length - read.shape[1] :] = read
        if told is not None:
            of = told.of.new_full((count, length), -1)
            of[anew, length - told.of.shape[1] :] = told.of
            conditions = Conditions(told.vectors, of.repeat(reader.num_streams, 1))
    if single:
        newest = reader.embed_chosen(rows.chosen, rows.grammars, rows.before, single)
        embeds = newest.new_zeros(count, length, newest.shape[-1]) if embeds is None else embeds
        embeds[single, length - 1] = newest[single].to(embeds.dtype)
    if embeds is None:
        raise ValueError("no row has a token to read")
    return embeds, conditions
