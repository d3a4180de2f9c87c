"""Samples to batches: rows of tokens with their table, what is to be embedded where, and what is to be learned where.

Shapes: B rows, L tokens of the longest row, N tokens (of one input or target) in all.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.masks import Mask, lower
from mmblocks.roles import ImageLayoutRule
from mmblocks.segments import Image, Piece, Segment
from mmblocks.text_tokenizers import TextTokenizer
from mmblocks.tokens import NO_SPAN, TokenTable

NO_ID = -1
"""In place of an id, where an embedder writes something that has none."""

Sample = Sequence[Segment]
"""One document: segments in reading order."""


class Placed(NamedTuple):
    """Something that belongs to certain tokens.

    Attributes:
        values: a tensor with one row per token, or a list of images (or arrays) that become the tokens together.
        places: where the tokens stand: ``row * L + column``.
    """

    values: Tensor | list[Tensor]
    places: Int[Tensor, " N"]


class Batch(NamedTuple):
    """What ``MultimodalModel`` reads.

    Attributes:
        ids: token ids, ``NO_ID`` where a token has none.
        table: who each token is.
        inputs: by embedder name, what it embeds and where the result goes.
        targets: by head name, what it is asked for and at which hidden states.
        mask: who sees whom, lowered on the host; None to let the trunk decide.
    """

    ids: Int[Tensor, "B L"]
    table: TokenTable
    inputs: dict[str, Placed]
    targets: dict[str, Placed]
    mask: Mask | None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""

        def move(placed: Placed) -> Placed:
            values = placed.values
            moved = [v.to(device) for v in values] if isinstance(values, list) else values.to(device)
            return Placed(moved, placed.places.to(device))

        return self._replace(
            ids=self.ids.to(device),
            table=self.table.to(device),
            inputs={name: move(placed) for name, placed in self.inputs.items()},
            targets={name: move(placed) for name, placed in self.targets.items()},
            mask=None if self.mask is None else type(self.mask)(*(t.to(device) for t in self.mask)),
        )


class BatchBuilder:
    """Lays samples out in rows.

    Args:
        tokenizer: turns strings into ids; not needed where samples hold ids only.
        inputs: the model's embedders by name; those that read images are asked for their ``layout``.
        heads: the names of the model's heads, in the model's order.
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer | None = None,
        inputs: Any = None,
        heads: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.heads = tuple(heads)
        self.input_names = None if inputs is None else tuple(inputs)
        embedders = {name: inputs[name] for name in inputs or ()}
        self.layouts: dict[str, ImageLayoutRule] = {
            name: embedder.layout for name, embedder in embedders.items() if hasattr(embedder, "layout")
        }

    def __call__(self, samples: Sequence[Sample], *, padding: Literal["left", "right"] = "right", pack: int | None = None) -> Batch:
        """One sample a row, or several.

        Args:
            samples: documents.
            padding: the side on which shorter rows are filled up; "left" for prompts that are to be continued.
            pack: rows of at most so many tokens, filled with whole samples in the order given; None for one a row.

        Raises:
            ValueError: no samples, an empty sample, an unknown input or head, or a sample longer than ``pack``.
        """
        if padding not in ("left", "right"):
            raise ValueError(f"padding is {padding!r}; accepted: 'left', 'right'")
        if not samples:
            raise ValueError("samples is empty; accepted: at least one")
        documents = [self._pieces(sample, number) for number, sample in enumerate(samples)]
        rows = [[document] for document in documents] if pack is None else _fill_rows(documents, pack)
        lengths = [sum(_num_tokens(document) for document in row) for row in rows]
        table = TokenTable.padding(len(rows), max(lengths))
        layout = _Layout(table, torch.full(table.shape, NO_ID), self.heads)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            layout.write_row(number, max(lengths) - length if padding == "left" else 0, row)
        return layout.batch()

    def _pieces(self, sample: Sample, number: int) -> list[Piece]:
        for segment in sample:
            self._check(segment, number)
        pieces = [segment.piece(self.tokenizer, self.layouts) for segment in sample]
        pieces = [piece for piece in pieces if piece.num_tokens]
        if not pieces:
            raise ValueError(f"sample {number} holds no token; accepted: at least one")
        return pieces

    def _check(self, segment: Segment, number: int) -> None:
        reads_pixels = isinstance(segment, Image)
        known = tuple(self.layouts) if reads_pixels else self.input_names
        if known is not None and segment.input not in known:
            what = "embedders of images" if reads_pixels else "inputs"
            raise ValueError(f"sample {number} has input {segment.input!r}; the model's {what}: {list(known)}")
        target = getattr(segment, "target", None)
        if target is not None and target not in self.heads:
            raise ValueError(f"sample {number} has target {target!r}; the model's heads: {list(self.heads)}")


class _Layout:
    """A batch while it is being filled."""

    def __init__(self, table: TokenTable, ids: Tensor, heads: tuple[str, ...]) -> None:
        self.table, self.ids, self.heads = table, ids, heads
        self.values: dict[str, list[Tensor]] = {}
        self.places: dict[str, list[Tensor]] = {}
        self.target_values: dict[str, list[Tensor]] = {}
        self.target_places: dict[str, list[Tensor]] = {}

    def write_row(self, row: int, column: int, documents: list[list[Piece]]) -> None:
        for number, pieces in enumerate(documents):
            order = span = 0
            first = column
            for piece in pieces:
                self._write_piece(row, column, number, order, span, piece)
                self._write_target(row, column, first, piece)
                order += 1 if piece.one_step else piece.num_tokens
                span += bool(piece.in_span.any())
                column += piece.num_tokens

    def batch(self) -> Batch:
        inputs = {}
        for name, values in self.values.items():
            are_images = values[0].ndim == 3  # ids are (n,), vectors (n, D)
            inputs[name] = Placed(values if are_images else torch.cat(values), torch.cat(self.places[name]))
        targets = {
            name: Placed(torch.cat(values), torch.cat(self.target_places[name])) for name, values in self.target_values.items()
        }
        return Batch(self.ids, self.table, inputs, targets, lower(self.table))

    def _write_piece(self, row: int, column: int, document: int, order: int, span: int, piece: Piece) -> None:
        here = slice(column, column + piece.num_tokens)
        steps = torch.zeros(piece.num_tokens) if piece.one_step else torch.arange(piece.num_tokens)
        self.table.modality[row, here] = piece.modality
        self.table.document[row, here] = document
        self.table.span[row, here] = torch.where(piece.in_span, span, NO_SPAN)
        self.table.grid[row, here] = piece.grid
        self.table.order[row, here] = order + steps.long()
        if piece.payload.dtype == torch.long:
            self.ids[row, here] = piece.payload
        self.values.setdefault(piece.input, []).append(piece.payload)
        self.places.setdefault(piece.input, []).append(self._flat(row, here))

    def _write_target(self, row: int, column: int, first: int, piece: Piece) -> None:
        """Asks, one token earlier, for each token that is to be learned; a document's first token has no earlier one."""
        if piece.target is None or piece.values is None:
            return
        learned = piece.learned.clone()
        learned[0] &= column > first
        asked = torch.arange(column - 1, column - 1 + piece.num_tokens)[learned]
        self.table.target[row, asked] = self.heads.index(piece.target)
        self.target_values.setdefault(piece.target, []).append(piece.values[learned])
        self.target_places.setdefault(piece.target, []).append(row * self.ids.shape[1] + asked)

    def _flat(self, row: int, here: slice) -> Tensor:
        return row * self.ids.shape[1] + torch.arange(here.start, here.stop)


def _num_tokens(document: list[Piece]) -> int:
    return sum(piece.num_tokens for piece in document)


def _fill_rows(documents: list[list[Piece]], length: int) -> list[list[list[Piece]]]:
    """Whole documents in the order given; a new row where the next one no longer fits."""
    rows: list[list[list[Piece]]] = []
    free = 0
    for number, document in enumerate(documents):
        needed = _num_tokens(document)
        if needed > length:
            raise ValueError(f"sample {number} has {needed} tokens; pack accepts at most {length}")
        if needed > free:
            rows.append([])
            free = length
        rows[-1].append(document)
        free -= needed
    return rows
