"""Samples to batches: rows of tokens with their table, what is to be embedded where, and what is to be learned where.

Shapes: B rows, L tokens of the longest row, N tokens (of one input or target) in all.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.masks import Mask, lower
from mmblocks.sequence.segments import NO_ID, Image, Piece, Segment
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, ImageLayout, ImageLayoutRule, TokenTable
from mmblocks.support.named import Named
from mmblocks.support.pickling import weightless
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

Sample = Sequence[Segment]
"""One document: segments in reading order."""

NUM_REMEMBERED = 128
"""Sizes of images of which a builder remembers the layouts."""


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
        table: what each token is.
        inputs: by embedder name, what it embeds and where the result goes.
        targets: by head name, labels, and the hidden states they supervise.
        mask: which tokens attend to which, lowered on the host; None to let the trunk decide.

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> batch = BatchBuilder(heads=("lm",))([[text([1, 2]), text([3, 4], target="lm")]])
        >>> batch.ids.tolist(), batch.targets["lm"].values.tolist()
        ([[1, 2, 3, 4]], [3, 4])
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


@runtime_checkable
class _HasLayout(Protocol):
    """An embedder of images."""

    def layout(self, height: int, width: int) -> ImageLayout: ...


class BatchBuilder:
    """Lays samples out in rows.

    Args:
        tokenizer: turns strings into ids; not needed where samples hold ids only.
        inputs: the model's embedders by name; those that read images have a ``layout``.
        heads: the names of the model's heads, in the model's order.

    A builder may be handed to other processes, the workers of a ``DataLoader`` among them, however they are started: it is written
    with its embedders' layout rules, without weights; see ``weightless``.

        DataLoader(samples, batch_size=8, collate_fn=model.batch_builder(tokenizer), num_workers=4)

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> builder = BatchBuilder()
        >>> samples = [[text([1, 2, 3])], [text([4])], [text([5, 6])]]
        >>> builder(samples, padding="left").ids.tolist()
        [[1, 2, 3], [-1, -1, 4], [-1, 5, 6]]
        >>> builder(samples, pack=4).table.document.tolist()
        [[0, 0, 0, 1], [0, 0, -1, -1]]
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer | None = None,
        inputs: Named[object] | None = None,
        heads: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.heads = tuple(heads)
        self.input_names = None if inputs is None else tuple(inputs)
        embedders = {} if inputs is None else {name: inputs[name] for name in inputs}
        self.layouts: dict[str, ImageLayoutRule] = {
            name: _Remembered(embedder.layout) for name, embedder in embedders.items() if isinstance(embedder, _HasLayout)
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
        documents = [self._pieces(sample, index) for index, sample in enumerate(samples)]
        rows = [[document] for document in documents] if pack is None else _fill_rows(documents, pack)
        lengths = [sum(_num_tokens(document) for document in row) for row in rows]
        length = max(lengths)
        laid: list[_Laid] = []
        for index, row in enumerate(rows):
            laid += _lay_out(row, index * length + (length - lengths[index] if padding == "left" else 0))
        return _assemble(laid, len(rows), length, self.heads)

    def _pieces(self, sample: Sample, index: int) -> list[Piece]:
        for segment in sample:
            self._check(segment, index)
        pieces = [segment.piece(self.tokenizer, self.layouts) for segment in sample]
        pieces = [piece for piece in pieces if piece.num_tokens]
        if not pieces:
            raise ValueError(f"sample {index} holds no token; accepted: at least one")
        return pieces

    def _check(self, segment: Segment, index: int) -> None:
        reads_pixels = isinstance(segment, Image)
        known = tuple(self.layouts) if reads_pixels else self.input_names
        if known is not None and segment.input not in known:
            what = "embedders of images" if reads_pixels else "inputs"
            raise ValueError(f"sample {index} has input {segment.input!r}; the model's {what}: {list(known)}")
        if segment.target is not None and segment.target not in self.heads:
            raise ValueError(f"sample {index} has target {segment.target!r}; the model's heads: {list(self.heads)}")


class _Remembered:
    """A layout rule that remembers the layouts of the last sizes, each process for itself."""

    def __init__(self, rule: ImageLayoutRule) -> None:
        self._rule = weightless(rule)
        self._remember = lru_cache(NUM_REMEMBERED)(rule)

    def __call__(self, height: int, width: int) -> ImageLayout:
        return self._remember(height, width)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Remembered, (self._rule,)


class _Laid(NamedTuple):
    """A piece, and where it stands: its first token's place, and what the table says of the piece as a whole."""

    piece: Piece
    place: int
    document: int
    order: int
    span: int
    is_first: bool


def _lay_out(documents: list[list[Piece]], place: int) -> list[_Laid]:
    """The pieces of one row, from ``place`` on."""
    laid = []
    for document, pieces in enumerate(documents):
        order = span = 0
        for index, piece in enumerate(pieces):
            laid.append(_Laid(piece, place, document, order, span, index == 0))
            order += 1 if piece.one_step else piece.num_tokens
            span += bool(piece.in_span.any())
            place += piece.num_tokens
    return laid


def _assemble(laid: list[_Laid], num_rows: int, length: int, heads: tuple[str, ...]) -> Batch:
    """All pieces at once, column by column: a handful of tensor operations, however many pieces there are."""
    pieces = [entry.piece for entry in laid]
    counts = torch.tensor([piece.num_tokens for piece in pieces])
    within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)

    def per_token(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(counts)

    place = per_token([entry.place for entry in laid]) + within
    table = TokenTable.padding(num_rows, length)
    ids = torch.full((num_rows, length), NO_ID)
    steps = torch.where(per_token([piece.one_step for piece in pieces]), 0, within)
    in_span = torch.cat([piece.in_span for piece in pieces])
    for column, values in (
        (table.modality, torch.cat([piece.modality for piece in pieces])),
        (table.document, per_token([entry.document for entry in laid])),
        (table.span, torch.where(in_span, per_token([entry.span for entry in laid]), NO_SPAN)),
        (table.order, per_token([entry.order for entry in laid]) + steps),
        (ids, torch.cat([piece.ids for piece in pieces])),
    ):
        column.view(-1)[place] = values
    table.grid.view(-1, 3)[place] = torch.cat([piece.grid for piece in pieces])

    # A token is predicted one place earlier; a document's first token has no earlier one.
    first = per_token([entry.is_first for entry in laid]) & (within == 0)
    learned = torch.cat([piece.learned for piece in pieces]) & ~first
    head = per_token([NO_HEAD if piece.target is None else heads.index(piece.target) for piece in pieces])
    supervised = learned & (head != NO_HEAD)
    table.target.view(-1)[place[supervised] - 1] = head[supervised]

    by_piece = list(zip(pieces, place.split(counts.tolist()), learned.split(counts.tolist()), strict=True))
    return Batch(ids, table, _inputs(by_piece), _targets(by_piece), lower(table))


def _inputs(by_piece: list[tuple[Piece, Tensor, Tensor]]) -> dict[str, Placed]:
    gathered: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for piece, place, _ in by_piece:
        values, places = gathered.setdefault(piece.input, ([], []))
        values.append(piece.payload)
        places.append(place)
    return {
        name: Placed(values if values[0].ndim == 3 else torch.cat(values), torch.cat(places))  # images are (3, H, W)
        for name, (values, places) in gathered.items()
    }


def _targets(by_piece: list[tuple[Piece, Tensor, Tensor]]) -> dict[str, Placed]:
    gathered: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for piece, place, learned in by_piece:
        if piece.target is not None and piece.values is not None:
            values, places = gathered.setdefault(piece.target, ([], []))
            values.append(piece.values[learned])
            places.append(place[learned] - 1)
    return {name: Placed(torch.cat(values), torch.cat(places)) for name, (values, places) in gathered.items()}


def _num_tokens(document: list[Piece]) -> int:
    return sum(piece.num_tokens for piece in document)


def _fill_rows(documents: list[list[Piece]], length: int) -> list[list[list[Piece]]]:
    """Whole documents in the order given; a new row where the next one no longer fits."""
    rows: list[list[list[Piece]]] = []
    free = 0
    for index, document in enumerate(documents):
        needed = _num_tokens(document)
        if needed > length:
            raise ValueError(f"sample {index} has {needed} tokens; pack accepts at most {length}")
        if needed > free:
            rows.append([])
            free = length
        rows[-1].append(document)
        free -= needed
    return rows
