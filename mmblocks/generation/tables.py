"""Tables of the tokens that are written, for all streams of guidance.

Shapes: B rows, SB rows of all streams, n tokens of a row, L tokens of the longest row.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.generation.grammar import Grammar, State, describe_all
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, PADDING, TokenTable


class Chunk(NamedTuple):
    """Tokens of one row that are read together, on the host.

    Attributes:
        modality, in_span, grid: for the table.
        span: which span after the row's last each belongs to, where it belongs to one.
        steps: generation step of each, counted from the next one on.
    """

    modality: Int[Tensor, " n"]
    in_span: Bool[Tensor, " n"]
    grid: Int[Tensor, "n 3"]
    span: Int[Tensor, " n"]
    steps: Int[Tensor, " n"]

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.modality)


class TableWriter:
    """Tables of the tokens that are written, for all streams.

    Args:
        prompt: the table of SB rows.
        num_streams: S.
        images_only: whether all streams but the first skip text.
    """

    def __init__(self, prompt: TokenTable, num_streams: int, images_only: bool) -> None:
        length = prompt.shape[1]
        newest = prompt.slice(length - 1, length)
        self.num_streams, self.images_only = num_streams, images_only
        self.order = newest.order
        self.documents: list[int] = newest.document[:, 0].clamp(min=0).tolist()  # rows without a token begin one
        self.next_spans: list[int] = (prompt.span.amax(dim=1) + 1).tolist()
        self._facts: list[tuple[int, int, int]] = []
        self._kinds: tuple[Tensor, Tensor, Tensor] = (newest.modality, newest.document, newest.span)
        self._noisy, self._target = torch.zeros_like(newest.noisy), torch.full_like(newest.target, NO_HEAD)

    def next(self, grammars: Sequence[Grammar], before: Sequence[State], after: Sequence[State]) -> TokenTable:
        """The column of the tokens that led from one state to the other: put together on the host, and copied once."""
        told = [
            (described, state, not (state.in_image or following.in_image))
            for described, state, following in zip(describe_all(grammars, before), before, after, strict=True)
        ]
        facts, grids = [], []
        for row, (document, next_span) in enumerate(zip(self.documents, self.next_spans, strict=True)):
            described, state, in_text = told[row % len(told)]
            own = next_span if described.in_span else NO_SPAN
            # Streams after the first skip text where images alone are guided.
            unread = state.mode == "done" or (self.images_only and in_text and row >= len(told))
            facts.append((PADDING, PADDING, own) if unread else (described.modality, document, own))
            grids.append(described.grid)
        if facts != self._facts:  # inside of an image or of text nothing but the grid is new in each step
            self._facts = facts
            kinds = torch.tensor(facts, device=self._noisy.device)[:, None]
            self._kinds = kinds[..., 0], kinds[..., 1], kinds[..., 2]
        grid = torch.tensor(grids, device=self._noisy.device)[:, None]
        self.order = self.order + 1
        self._finish([b.num_images - a.num_images for a, b in zip(before, after, strict=True)])
        return TokenTable(*self._kinds, grid, self.order, self._noisy, self._target)

    def block(self, chunks: Mapping[int, Chunk], rows: int, *, noisy: bool = False, skipping: Sequence[int] = ()) -> TokenTable:
        """Several tokens of some rows, padded on the left; other rows have padding alone.

        Args:
            chunks: by row of the first stream.
            rows: B.
            noisy: whether they are noised copies.
            skipping: rows that the other streams skip.
        """
        length = max(chunk.num_tokens for chunk in chunks.values())
        host = TokenTable.padding(rows, length)
        steps = torch.zeros(rows, length, dtype=torch.long)
        for row, chunk in chunks.items():
            at = slice(length - chunk.num_tokens, length)
            host.modality[row, at], host.grid[row, at], steps[row, at] = chunk.modality, chunk.grid, chunk.steps
            host.document[row, at], host.noisy[row, at] = 0, noisy
            host.span[row, at] = torch.where(chunk.in_span, chunk.span, NO_SPAN)
        table = TokenTable(*(torch.cat([column] * self.num_streams) for column in host)).to(self.order.device)
        steps = torch.cat([steps] * self.num_streams).to(self.order.device)
        unread = table.is_padding
        if skipping and self.num_streams > 1:
            others = [row + stream * rows for stream in range(1, self.num_streams) for row in skipping]
            unread = unread.index_fill(0, torch.tensor(others, device=unread.device), value=True)
        return table._replace(
            modality=torch.where(unread, PADDING, table.modality),
            document=torch.where(unread, PADDING, self._column(self.documents)),
            span=torch.where(table.span == NO_SPAN, NO_SPAN, table.span + self._column(self.next_spans)),
            order=self.order + 1 + steps,
        )

    def count(self, table: TokenTable, spans: Mapping[int, int], rows: int) -> None:
        """Notes that tokens stay in the row: the next ones come after them.

        Args:
            table: of them.
            spans: by row of the first stream, how many spans are complete.
            rows: B.
        """
        real = ~table.is_padding
        self.order = torch.maximum(self.order, torch.where(real, table.order, -1).amax(dim=1, keepdim=True))
        self._finish([spans.get(row, 0) for row in range(rows)])

    def _finish(self, spans: Sequence[int]) -> None:
        """Spans that are complete, by row of the first stream."""
        if any(spans):
            self.next_spans = [span + spans[row % len(spans)] for row, span in enumerate(self.next_spans)]

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.order.device)[:, None]
