"""Rows that hold spans of one head and nothing else, all laid out alike, as models of classes have them.

Shapes: B rows, L tokens of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mmblocks.sequence.batches import BatchBuilder
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.spans import Spans
from mmblocks.sequence.tokens import TokenTable

IMAGE = "image"
"""The target of the segments."""


class LoneSpans(NamedTuple):
    """How one such row is laid out.

    Attributes:
        table: of its tokens.
        spans: what is learned or written.
        copies: what is read clean; None for nothing.

    Examples:
        >>> import torch
        >>> from mmblocks import vectors
        >>> from mmblocks.heads import SpanDenoisingHead
        >>> from mmblocks.sequence.lone_spans import LoneSpans
        >>> block = vectors(torch.zeros(3, 4), input="latents", target="image")
        >>> row = LoneSpans.of(SpanDenoisingHead(dim=16, channels=4), [block, block])
        >>> row.spans.places.tolist(), row.copies.places.tolist()  # the first block, its clean copy, the second
        ([0, 1, 2, 6, 7, 8], [3, 4, 5])
        >>> spans, table = row.alone(1).rows(2)
        >>> spans.places.tolist(), table.order.tolist()
        ([0, 1, 2, 3, 4, 5], [[1, 1, 1], [1, 1, 1]])
    """

    table: TokenTable
    spans: Spans
    copies: Spans | None

    @classmethod
    def of(cls, head: object, segments: Sequence[Segment], device: torch.device | str = "cpu") -> "LoneSpans":
        """The row that these segments of the target "image" make for a head of whole spans."""
        batch = BatchBuilder(heads={IMAGE: head})([segments]).to(device)
        return cls(batch.table, batch.spans[IMAGE], batch.copies.get(IMAGE))

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
