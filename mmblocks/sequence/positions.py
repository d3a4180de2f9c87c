"""Positions as functions of the token table, and rotary embedding of them.

A position scheme is any function of a ``TokenTable`` that returns (B, L) or (B, L, axes), integer or float; the ones
that published models use are here. Positions restart in every packed document and do not count padding. Noised copies count on
from the clean tokens of smaller order, and nothing counts them: a copy has the positions of what it copies, wherever it stands.

Shapes: B batch, L tokens, H heads, D width of a head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from mmblocks.sequence.documents import document_begins, last_real, noised_run_begins
from mmblocks.sequence.masks import changes
from mmblocks.sequence.tokens import NO_SPAN, PADDING, TokenTable

PositionScheme = Callable[[TokenTable], Tensor]
"""A table -> positions (B, L) or (B, L, axes)."""


def sequential(table: TokenTable) -> Int[Tensor, "B L"]:
    """0, 1, 2 ... inside each document: the plain 1-D scheme of Llama-like models, images included.

    Padding in the midst of a document takes no position.

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> from mmblocks.sequence import sequential
        >>> batch = BatchBuilder()([[text([1, 2, 3])], [text([4, 5])]], pack=6)
        >>> sequential(batch.table).tolist()
        [[0, 1, 2, 0, 1]]
    """
    clean = _clean(table)
    real = ~clean.is_padding
    count = real.long().cumsum(dim=1) - 1
    first = torch.where(document_begins(clean), count, 0).cummax(dim=1).values
    found = torch.where(real, count - first, 0)
    return found if clean is table else _with_noised(table, found, found, _inside(table))


def by_order(table: TokenTable) -> Int[Tensor, "B L"]:
    """One position for all tokens of one order: an image that attends within itself takes one step (Transfusion).

    Padding in the midst of a document takes no position.
    """
    clean = _clean(table)
    begins = document_begins(clean)
    order = clean.order.gather(1, last_real(clean).clamp(min=0))  # padding counts as what stands before it
    steps = (changes(order) | begins).long().cumsum(dim=1)
    first = torch.where(begins, steps, 0).cummax(dim=1).values
    found = torch.where(clean.is_padding, 0, steps - first)
    if clean is table:
        return found
    order = table.order.gather(1, last_real(table).clamp(min=0))
    inside = changes(order).long().cumsum(dim=1)
    return _with_noised(table, found, found, inside - inside.gather(1, noised_run_begins(table)))


def grid_2d(table: TokenTable) -> Int[Tensor, "B L 2"]:
    """(row, column) inside the image; zeros for text."""
    return table.grid[..., 1:]


def time_height_width(table: TokenTable) -> Int[Tensor, "B L 3"]:
    """(t, h, w) as in NEO: t advances with the order, so that an image takes one step; h and w count inside it."""
    return torch.cat([by_order(table)[..., None], grid_2d(table)], dim=-1)


def mrope(table: TokenTable) -> Int[Tensor, "B L 3"]:
    """(t, h, w) as in Qwen2-VL, for a trunk with ``rope_sections``.

    Text counts alike on all three; an image counts its grid from where the text stopped, and the text goes on after the largest
    number of any axis. Source: Qwen2-VL (arXiv 2409.12191).

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, text, vectors
        >>> from mmblocks.sequence import mrope
        >>> batch = BatchBuilder()([[text([1]), vectors(torch.randn(2, 2, 8), input="latents"), text([2])]])
        >>> mrope(batch.table)[0].tolist()
        [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3]]
    """
    clean = _clean(table)
    begins, _ = mrope_runs(clean)
    positions = begins[..., None] + torch.where((clean.span != NO_SPAN)[..., None], clean.grid, 0)
    found = torch.where(clean.is_padding[..., None], 0, positions)
    return found if clean is table else _with_noised(table, found, found.amax(dim=-1, keepdim=True), table.grid)


def mrope_runs(table: TokenTable) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """For ``mrope``: where the run of each token begins to count, and by how much rows have advanced at the end of it, 0 elsewhere.

    A run is an image, one token of text, or one of padding.
    """
    vision = table.span != NO_SPAN
    opens = document_begins(table)
    begins = changes(table.span) | opens | ~vision
    run = begins.long().cumsum(dim=1)
    # The largest number inside the run so far; runs are told apart by a step that no grid reaches.
    far = 1 << 24
    extent = (run * far + table.grid.amax(dim=-1)).cummax(dim=1).values - run * far + 1
    run_ends = begins.roll(-1, dims=1)
    run_ends[:, -1] = True
    advance = torch.where(run_ends, torch.where(vision, extent, (~table.is_padding).long()), 0)
    before = advance.cumsum(dim=1) - advance
    start = torch.where(opens, before, 0).cummax(dim=1).values
    return before - start, advance


def v2pe(table: TokenTable, increment: float) -> Float[Tensor, "B L"]:
    """Visual tokens advance by ``increment``, text by one; text after an image resumes at the next whole number + 1.

    Source: V2PE (OpenGVLab/V2PE), where the increment is stride/256 with stride in {1, ..., 256}.

    Raises:
        ValueError: if ``increment`` is not in (0, 1].
    """
    if not 0 < increment <= 1:
        raise ValueError(f"increment is {increment}; accepted: 0 < increment <= 1")
    everything, table = table, _clean(table)
    vision = (table.span != NO_SPAN) & ~table.is_padding
    opens = document_begins(table)
    index = torch.arange(table.span.shape[1], device=table.span.device).expand_as(table.span)

    # Inside a run of visual tokens: how many steps so far. The token a document begins with has made none.
    run_begins = changes(vision.long()) | opens
    run_first = torch.where(run_begins, index, 0).cummax(dim=1).values
    so_far = torch.where(vision, index - run_first + 1 - opens.long().gather(1, run_first), 0)
    advance = so_far * increment

    # Whole steps: one per text token, and a finished run's length rounded up.
    run_ends = vision & run_begins.roll(-1, dims=1)
    run_ends[:, -1] = False
    rounded_up = torch.where(run_ends, advance.ceil(), 0.0)
    whole = (~vision & ~table.is_padding).to(advance.dtype).cumsum(dim=1) + rounded_up.cumsum(dim=1) - rounded_up

    positions = whole + advance
    first = _at_document_start(positions, opens)
    found = torch.where(table.is_padding, 0.0, positions - first).float()
    if everything is table:
        return found
    return _with_noised(everything, found, found, (_inside(everything) + 1) * increment, step=0.0, alone=-increment)


def _clean(table: TokenTable) -> TokenTable:
    """The table with padding in the places of noised tokens; the table itself where there is none, as far as a host can tell."""
    if table.noisy.device.type == "cpu" and not torch.compiler.is_compiling() and not table.noisy.any():
        return table
    return table._replace(document=torch.where(table.noisy, PADDING, table.document))


def _inside(table: TokenTable) -> Int[Tensor, "B L"]:
    """How many tokens of its noised span stand before a noised token, padding aside."""
    count = (~table.is_padding).long().cumsum(dim=1)
    return count - count.gather(1, noised_run_begins(table))


def _last_attended(table: TokenTable) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """For noised tokens: where the last clean token stands that comes before their span, and whether there is one.

    Clean tokens stand in the order in which they are generated; a noised copy may stand before or after what it copies.
    """
    far = torch.iinfo(torch.long).max
    order = table.order.gather(1, noised_run_begins(table))
    clean = torch.where(table.noisy | table.is_padding, far, (table.document << 32) + table.order)
    ranked, places = clean.sort(dim=1, stable=True)
    rank = torch.searchsorted(ranked, (table.document << 32) + order) - 1
    place = places.gather(1, rank.clamp(min=0))
    return place, (rank >= 0) & (table.document.gather(1, place) == table.document)


def _with_noised(
    table: TokenTable,
    found: Num[Tensor, "B L *axes"],
    last: Num[Tensor, "B L *one"],
    inside: Num[Tensor, "B L *axes"],
    *,
    step: float = 1,
    alone: float = 0,
) -> Num[Tensor, "B L *axes"]:
    """Positions of clean tokens, and those of noised ones after them.

    Args:
        table: of all tokens.
        found: positions of the clean ones.
        last: where a noised span counts on from, after each clean token.
        inside: what a noised token adds.
        step: how far the first noised token is from ``last``.
        alone: where a noised span begins that nothing clean stands before.
    """
    before, own = _last_attended(table)
    shape = before.shape + (1,) * (last.ndim - 2)
    counted = last.gather(1, before.view(shape)) + step
    start = torch.where(own.view(shape), counted, torch.full_like(counted, alone))
    return torch.where(table.noisy.view(before.shape + (1,) * (found.ndim - 2)), (start + inside).to(found.dtype), found)


def _at_document_start(values: Float[Tensor, "B L"], opens: Tensor) -> Float[Tensor, "B L"]:
    index = torch.arange(values.shape[1], device=values.device).expand_as(opens)
    first = torch.where(opens, index, 0).cummax(dim=1).values
    return values.gather(1, first)


class RotaryTable(NamedTuple):
    """Cosines and sines of the rotation angles, one per pair of channels, in float32."""

    cos: Float[Tensor, "B L half"]
    sin: Float[Tensor, "B L half"]


def rotary_table(
    positions: Num[Tensor, "B L"],
    dim: int,
    theta: float | Float[Tensor, "B 1"],
    stretch: Float[Tensor, "B half"] | None = None,
) -> RotaryTable:
    """Angles ``position * theta ** (-2i / dim)`` for the channel pairs ``i``; ``theta`` may differ by row.

    ``stretch`` divides them, pair by pair.

    Raises:
        ValueError: if ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"dim is {dim}; rotary embedding turns pairs of channels, so it must be even")
    frequency = _frequency(dim, theta, positions.device, stretch)
    angle = positions.float()[..., None] * frequency
    return RotaryTable(angle.cos(), angle.sin())


def axes_rotary_table(positions: Num[Tensor, "B L A"], dims: Sequence[int], theta: Sequence[float]) -> RotaryTable:
    """Angles of several axes, one after the other: ``dims[a]`` channels for axis ``a``, with a base of its own.

    For ``rotate_axes``.

    Raises:
        ValueError: another number of axes than of ``dims`` or ``theta``, or an odd width.
    """
    if not positions.shape[-1] == len(dims) == len(theta):
        raise ValueError(f"{positions.shape[-1]} axes with {len(dims)} dims and {len(theta)} theta; accepted: as many of each")
    tables = [rotary_table(axis, dim, base) for axis, dim, base in zip(positions.unbind(-1), dims, theta, strict=True)]
    return RotaryTable(torch.cat([table.cos for table in tables], -1), torch.cat([table.sin for table in tables], -1))


def sections_rotary_table(
    positions: Num[Tensor, "B L A"], dim: int, theta: float, sections: Sequence[int], *, interleaved: bool = False
) -> RotaryTable:
    """Angles that share one run of frequencies: pair of channels after pair belongs to one of the axes (Qwen2-VL's "m-RoPE").

    Args:
        positions: on each axis.
        dim: channels in all.
        theta: base of the frequencies.
        sections: how many pairs each axis has, ``dim / 2`` in all: the first ones axis 0's, and so on.
        interleaved: whether the axes take turns until their pairs are used up, the rest being axis 0's (Qwen3-VL).

    Raises:
        ValueError: sections that are not one an axis and ``dim / 2`` in all.
    """
    if len(sections) != positions.shape[-1] or 2 * sum(sections) != dim:
        raise ValueError(f"sections are {tuple(sections)}; accepted: one for each of {positions.shape[-1]} axes, {dim // 2} in all")
    axis_of = [axis for axis, count in enumerate(sections) for _ in range(count)]
    if interleaved:
        num_axes = len(sections)
        turns = [(pair % num_axes, pair // num_axes) for pair in range(dim // 2)]
        axis_of = [axis if turn < sections[axis] else 0 for axis, turn in turns]
    angle = positions.float()[..., axis_of] * _frequency(dim, theta, positions.device)
    return RotaryTable(angle.cos(), angle.sin())


def rotate_axes(x: Float[Tensor, "B H L D"], table: RotaryTable, dims: Sequence[int]) -> Float[Tensor, "B H L D"]:
    """Rotates each axis's ``dims[a]`` channels among themselves, half-split: NEO's step, row and column."""
    halves = [dim // 2 for dim in dims]
    tables = map(RotaryTable, table.cos.split(halves, -1), table.sin.split(halves, -1))
    return torch.cat([rotate_half_split(part, own) for part, own in zip(x.split(tuple(dims), -1), tables, strict=True)], -1)


def rotate_half_split(x: Float[Tensor, "B H L D"], table: RotaryTable) -> Float[Tensor, "B H L D"]:
    """Rotates the pairs (i, i + D/2): the layout of Llama, Qwen, Emu3."""
    cos, sin = table.cos[:, None].to(x.dtype), table.sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_interleaved(x: Float[Tensor, "B H L D"], table: RotaryTable) -> Float[Tensor, "B H L D"]:
    """Rotates the pairs (2i, 2i + 1): the layout of NEO's patch embedding, EVA and the original RoFormer."""
    cos, sin = table.cos[:, None].to(x.dtype), table.sin[:, None].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def _frequency(
    dim: int, theta: float | Float[Tensor, "B 1"], device: torch.device, stretch: Float[Tensor, "B half"] | None = None
) -> Float[Tensor, "*rows half"]:
    if stretch is None and not isinstance(theta, Tensor) and device.type == "cpu" and not torch.compiler.is_compiling():
        kept = _FREQUENCIES.get((dim, theta))
        if kept is None:
            with torch.inference_mode(False):
                kept = _computed_frequency(dim, theta, device)
            if type(kept) is Tensor and len(_FREQUENCIES) < MOST_REMEMBERED:  # not what stands for one while a graph is traced
                _FREQUENCIES[dim, theta] = kept
        return kept
    return _computed_frequency(dim, theta, device, stretch)


MOST_REMEMBERED = 256
"""Kinds of angles whose frequencies are kept."""

_FREQUENCIES: dict[tuple[int, float], Tensor] = {}
"""By width and base, on the processor: what every step of generation needs anew."""


def _computed_frequency(
    dim: int, theta: float | Float[Tensor, "B 1"], device: torch.device, stretch: Float[Tensor, "B half"] | None = None
) -> Float[Tensor, "*rows half"]:
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    # Filled on the device: copied there from the host, a GPU would be waited for in every step.
    base = theta.float() if isinstance(theta, Tensor) else torch.full((), theta, dtype=torch.float32, device=device)
    period = base[..., None] ** exponent
    return 1.0 / (period if stretch is None else stretch[:, None] * period)
