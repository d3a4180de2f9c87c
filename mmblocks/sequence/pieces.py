"""A segment's tokens before they stand in a row, and how a head that writes whole spans lays them out.

Shapes: n tokens of a piece, D width of a vector.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.sequence.spans import SpanLayout, to_patches
from mmblocks.vocabulary.grid_format import GridFormat
from mmblocks.vocabulary.grid_sizes import places_of

NO_ID = -1
"""In place of an id, where an embedder writes something that has none."""


class SpanPart(NamedTuple):
    """What a piece has beside where a head writes whole spans.

    Attributes:
        layout: the head's.
        copies: whether it is the clean copy, which is read and not learned.
        steps: generation step of each token, the head's own first.
        size: of the span, in values.
        values: what the head writes: one row a token, or as the sample has it.
        given: what the sample says of the span beside.
        ids: see ``Spans.ids``.
    """

    layout: SpanLayout
    copies: bool
    steps: Int[Tensor, " n"]
    size: tuple[int, ...]
    values: Tensor
    given: dict[str, Tensor]
    ids: Int[Tensor, "n 2"] | None = None


class Piece(NamedTuple):
    """A segment's n tokens, before they are laid out in a row.

    Attributes:
        input: which embedder writes them.
        payload: what it is given: ids (n,), or one image or array of vectors; None where a head says what is read.
        modality, grid: columns of the token table.
        in_span: True where the token belongs to the image or block (and not to structure around it).
        one_step: whether all tokens are one generation step, and so see each other.
        target: the head that learns them, or None.
        learned: which of the tokens that head learns.
        values: what it learns: ids (n,) or vectors (n, D); None without a target.
        weight: of their losses.
        size: of the image or block, in values.
        given: what the sample says of it beside, by name.
        span: where a head writes it as a whole.
        stays: False for what a clean copy follows, which goes on from its last step.
        pooled: whether it is a label of the mean of the states before.
        format: how its ids are written, where they are codes of one.
    """

    input: str
    payload: Tensor | None
    modality: Int[Tensor, " n"]
    grid: Int[Tensor, "n 3"]
    in_span: Bool[Tensor, " n"]
    one_step: bool
    target: str | None
    learned: Bool[Tensor, " n"]
    values: Tensor | None
    weight: float = 1.0
    size: tuple[int, ...] = ()
    given: dict[str, Tensor] = {}  # noqa: RUF012  # never written to
    span: SpanPart | None = None
    stays: bool = True
    pooled: bool = False
    format: GridFormat | None = None

    @property
    def is_label(self) -> bool:
        """Whether it is a label alone, without tokens."""
        return not self.num_tokens

    @property
    def is_noisy(self) -> bool:
        """Whether the tokens are a noised copy, which none but themselves attend to."""
        return self.span is not None and not self.span.copies and self.span.layout.context == "clean"

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.modality.shape[0]

    @property
    def num_steps(self) -> int:
        """How many generation steps the tokens take."""
        if self.span is not None:
            return int(self.span.steps[-1]) + 1
        return 1 if self.one_step else self.num_tokens

    @property
    def ids(self) -> Int[Tensor, " n"]:
        """The tokens' ids, ``NO_ID`` where they have none."""
        payload = self.payload
        if payload is None or payload.dtype != torch.long or payload.ndim != 1:
            return torch.full_like(self.modality, NO_ID)
        return payload


@lru_cache(256)
def span_steps(layout: SpanLayout, count: int) -> Int[Tensor, " n"]:
    """Generation step of each token of a span: the head's own tokens together, then the span's."""
    if layout.scales is not None:
        sizes = torch.tensor([rows * columns for rows, columns in layout.scales])
        inside = torch.arange(len(sizes)).repeat_interleave(sizes)
    else:
        inside = torch.arange(count) if layout.attends == "causal" else torch.zeros(count, dtype=torch.long)
    return torch.cat([torch.zeros(layout.lead, dtype=torch.long), inside + (layout.lead > 0 and layout.attends != "all")])


@lru_cache(256)
def span_grid(layout: SpanLayout, size: tuple[int, ...]) -> Int[Tensor, "n 3"]:
    """(t, h, w) of each token of a span whose values have this size; the head's own tokens have zeros."""
    if layout.scales is not None:
        grid = torch.cat([raster_grid(scale) for scale in layout.scales])
    else:
        grid = raster_grid(layout.grid(size) if layout.num_tokens is None else (layout.num_tokens,))
    return torch.cat([torch.zeros(layout.lead, 3, dtype=torch.long), grid])


@lru_cache(256)
def raster_grid(size: tuple[int, ...]) -> Int[Tensor, "n 3"]:
    """(t, h, w) of each place of a grid of one to three axes, row by row."""
    return places_of(size)


def span_pieces(piece: Piece, layout: SpanLayout, *, learn: bool, followed: bool) -> list[Piece]:
    """A segment's tokens as a head lays out the spans that it writes.

    Args:
        piece: the segment's tokens, as other heads would learn them.
        layout: of the head.
        learn: whether the span is learned; in a prompt it is read alone.
        followed: whether something comes after it in the sample, so that a clean copy is read there.

    Raises:
        ValueError: a span with structure inside, such as row ends, that the layout does not take, or without the tokens before
            that it reads too; another number of values than the layout has tokens; or one that would be read, as in a prompt, and
            has no clean form.
    """
    piece, first, stop = _inside(piece, layout)
    if not learn and layout.num_tokens is not None:
        raise ValueError(
            f"what head {piece.target!r} reads while it writes stays in the row; accepted in a prompt: spans without target"
        )
    start = _opened(piece, layout, first) if learn else first
    around = piece._replace(target=layout.learner if learn else None)
    has_copy = not learn or layout.learner is not None or (followed and layout.context == "clean")
    made = [_cut(around, 0, start)]
    if learn:
        noised = _span(_cut(piece, start, stop), layout, copies=False)
        made.append(noised._replace(stays=not has_copy))
    if has_copy and layout.learner is not None:
        made.append(_cut(around, start, stop))
    elif has_copy:
        made += [_cut(around, start, first), _span(_cut(piece, first, stop), layout, copies=True)]
    made.append(_cut(around, stop, piece.num_tokens))
    return [one for one in made if one.num_tokens]


def span_piece(piece: Piece, layout: SpanLayout) -> Piece:
    """The tokens at which a head reads and writes a span, of a segment that holds it; see ``span_pieces``."""
    piece, first, stop = _inside(piece, layout)
    return _span(_cut(piece, _opened(piece, layout, first), stop), layout, copies=False)


def _inside(piece: Piece, layout: SpanLayout) -> tuple[Piece, int, int]:
    """The piece, and from where to where its span is."""
    if not piece.in_span.any():  # text, which is a span as a whole where a head writes it so
        piece = piece._replace(in_span=torch.ones_like(piece.in_span), size=(piece.num_tokens,))
    inside = piece.in_span.nonzero()[:, 0]
    first, stop = int(inside[0]), int(inside[-1]) + 1
    if stop - first != len(inside) and not layout.structure:
        raise ValueError(f"head {piece.target!r} writes whole spans; accepted: a format without ids between the codes of an image")
    return piece, first, stop


def _opened(piece: Piece, layout: SpanLayout, first: int) -> int:
    """Where that begins which a head reads with a span."""
    if first < layout.opening:
        accepted = f"a format with {layout.opening} or more ids before its codes"
        raise ValueError(f"{first} tokens of the segment stand before the span of head {piece.target!r}; accepted: {accepted}")
    return first - layout.opening


def _span(body: Piece, layout: SpanLayout, *, copies: bool) -> Piece:
    values = body.values
    if values is None:
        raise ValueError(f"head {body.target!r} was given a span without values; accepted: vectors, codes, or an image")
    if layout.whole and layout.writes != "pixels":
        values = values.reshape(*body.size, *values.shape[1:])
    if layout.patch > 1:
        if not torch.equal(body.grid, raster_grid(body.size)):
            raise ValueError(f"values for head {body.target!r} have an order; accepted: none, since it takes them in patches")
        layout.grid(body.size)
        values = to_patches(values.view(*body.size, -1), layout.patch)
    count = layout.count(body.size)
    given = 0 if layout.whole else int((~body.in_span).sum())
    rows = len(values) - given if layout.num_tokens is None and not layout.whole else count
    if rows != count:
        raise ValueError(f"a span of {rows} values for head {body.target!r}; accepted: {count}, as its layout has")
    length = layout.lead + count + given
    everything = torch.ones(length, dtype=torch.bool)
    steps = span_steps(layout, count + given)
    return Piece(
        input=body.input,
        payload=None,
        modality=body.modality if given else layout.modalities(body.modality[:1].expand(length)),
        grid=_grid(body, layout),
        in_span=body.in_span if copies and given else everything,
        one_step=False,
        target=body.target,
        learned=~everything,
        values=None,
        weight=body.weight,
        span=SpanPart(layout, copies, steps, body.size, values, body.given, _ids_of(body) if layout.structure else None),
    )


def _grid(body: Piece, layout: SpanLayout) -> Int[Tensor, "n 3"]:
    """Places of the tokens; where each has a value, in the order of the values."""
    grid = span_grid(layout, body.size)
    if layout.whole or layout.num_tokens is not None or layout.scales is not None or layout.patch > 1:
        return grid
    return torch.cat([grid[: layout.lead], body.grid])


def _ids_of(body: Piece) -> Int[Tensor, "n 2"] | None:
    """Which ids may stand at each token, as a format says."""
    if body.format is None:
        return None
    ids = torch.stack([body.ids, body.ids + 1], dim=1)
    codes = body.format.codes
    levels = [codes.ranges_of(level) for level in range(body.format.num_levels)]
    bounds = torch.tensor([(ranges[0][0], ranges[-1][1]) for ranges in levels])
    ids[body.in_span] = bounds.repeat(int(body.in_span.sum()) // len(bounds), 1)
    return ids


def _cut(piece: Piece, start: int, stop: int) -> Piece:
    """Some of a piece's tokens."""
    part = slice(start, stop)
    payload, values = piece.payload, piece.values
    return piece._replace(
        payload=None if payload is None else payload[part],
        modality=piece.modality[part],
        grid=piece.grid[part],
        in_span=piece.in_span[part],
        learned=piece.learned[part],
        values=values if values is None or len(values) != piece.num_tokens else values[part],
    )
