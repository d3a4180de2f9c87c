"""Rows that hold spans of one head and nothing else, all laid out alike, as models of classes have them.

Shapes: B rows, L tokens of a row.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.batches import BatchBuilder
from mmblocks.sequence.segments import Segment, codes, vectors
from mmblocks.sequence.spans import SpanLayout, Spans
from mmblocks.sequence.tokens import TokenTable

IMAGE = "image"
"""What models of classes call their head."""


class LoneSpans(NamedTuple):
    """How one such row is laid out.

    Attributes:
        table: of its tokens.
        spans: what is learned or written.
        copies: what is read clean; None for nothing.

    Examples:
        >>> from mmblocks.sequence import SpanLayout
        >>> from mmblocks.sequence.lone_spans import LoneSpans
        >>> row = LoneSpans.of(SpanLayout(writes="vectors"), (3,), 2)
        >>> row.spans.places.tolist(), row.copies.places.tolist()  # the first block, its clean copy, the second
        ([0, 1, 2, 6, 7, 8], [3, 4, 5])
        >>> spans, table = row.alone(1).rows(2)
        >>> spans.places.tolist(), table.order.tolist()
        ([0, 1, 2, 3, 4, 5], [[1, 1, 1], [1, 1, 1]])
    """

    table: TokenTable
    spans: Spans
    copies: Spans | None

    @staticmethod
    def of(layout: SpanLayout, size: tuple[int, ...], count: int = 1, device: torch.device | str = "cpu") -> "LoneSpans":
        """A row of so many spans, of vectors or ids, each with values of this size."""
        return _laid_out(layout, size, count).to(device)

    def to(self, device: torch.device | str) -> "LoneSpans":
        """The same on another device."""
        return LoneSpans(self.table.to(device), self.spans.to(device), None if self.copies is None else self.copies.to(device))

    def standing(self, grid: Int[Tensor, "N 3"]) -> "LoneSpans":
        """The row with other places (t, h, w) of the values of all spans."""
        found = self.table.grid.index_copy(1, self.spans.places, grid[None])
        if self.copies is not None:
            found = found.index_copy(1, self.copies.places, grid[None, : self.copies.num_tokens])
        return self._replace(table=self.table._replace(grid=found))

    def rows(self, count: int, streams: int = 1) -> tuple[Spans, TokenTable]:
        """The spans of B rows, without values, and the table of those rows in all streams."""
        return self.spans.repeated(count, self.table.shape[1]), self.tables(streams * count)

    def tables(self, count: int) -> TokenTable:
        """The table of so many rows."""
        return TokenTable(*(column.expand(count, *column.shape[1:]) for column in self.table))

    def alone(self, index: int, *, clean: bool = False) -> "LoneSpans":
        """One of the spans, or of the clean copies, as a row of its own."""
        spans = self.copies if clean and self.copies is not None else self.spans
        count, before = spans.counts[index], sum(spans.counts[:index])
        lead = len(spans.leads) // spans.num_spans
        first = int(spans.places[before]) - lead
        places = torch.arange(lead, lead + count, device=spans.device)
        own = spans._replace(
            sizes=spans.sizes[index : index + 1],
            counts=(count,),
            grid=spans.grid[before : before + count],
            places=places,
            leads=torch.arange(lead, device=spans.device),
            states=places,
        )
        return LoneSpans(self.table.slice(first, first + lead + count), own, None)


class _Head(NamedTuple):
    """As much of a head as a batch builder needs."""

    span: SpanLayout


@lru_cache(64)
def _laid_out(layout: SpanLayout, size: tuple[int, ...], count: int) -> LoneSpans:
    nothing = torch.zeros(*size, dtype=torch.long)
    segment: Segment = vectors(nothing[..., None].float(), input=IMAGE, target=IMAGE)
    if layout.writes == "ids":
        segment = codes(nothing, input=IMAGE, target=IMAGE)
    batch = BatchBuilder(heads={IMAGE: _Head(layout)})([[segment] * count])
    return LoneSpans(batch.table, batch.spans[IMAGE]._replace(values=None), batch.copies.get(IMAGE))
