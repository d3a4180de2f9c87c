"""How position schemes go on by one token, from little that they carry along in place of the whole row.

``FOLLOWING`` has those of this library; any other scheme is computed from whole rows. A scheme of one's own is added with

    FOLLOWING[scheme] = Following(start, step)

where both say the same as the scheme itself, for rows and tokens such as ``past.Past`` speaks of.

Shapes: B rows, L tokens of a row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.sequence.documents import last_real
from mmblocks.sequence.positions import PositionScheme, by_order, grid_2d, mrope, mrope_runs, sequential, time_height_width
from mmblocks.sequence.tokens import NO_SPAN, TokenTable

Carried = tuple[Tensor, ...]
"""What a scheme carries along: tensors (B, 1)."""


class Following(NamedTuple):
    """How a scheme goes on.

    Each row holds clean tokens, one or more, and padding anywhere. A token that is added is padding, or is clean, belongs to the
    document of the last real token of its row, and has an order no smaller than that one's.

    Attributes:
        start: a table -> what is carried along after it.
        step: (what was carried, one column of the table, where it is no padding) -> its positions, and what is carried after it.
        ahead: (what was carried, n) -> the positions (B, n) of the next n tokens if none of them is padding; None where positions
            depend on more.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import sequential
        >>> from mmblocks.sequence.following import FOLLOWING
        >>> table = TokenTable.text(1, 6)
        >>> column = table.slice(5, 6)
        >>> carried = FOLLOWING[sequential].start(table.slice(0, 5))
        >>> FOLLOWING[sequential].step(carried, column, ~column.is_padding)[0].tolist()
        [[5]]
    """

    start: Callable[[TokenTable], Carried]
    step: Callable[[Carried, TokenTable, Bool[Tensor, "B 1"]], tuple[Tensor, Carried]]
    ahead: Callable[[Carried, int], Tensor] | None = None


def _at_last(table: TokenTable, values: Int[Tensor, "B L"]) -> Int[Tensor, "B 1"]:
    """What stands at the last real token of each row."""
    return values.gather(1, last_real(table)[:, -1:])


def _start_sequential(table: TokenTable) -> Carried:
    """The next position."""
    return (_at_last(table, sequential(table)) + 1,)


def _sequential(carried: Carried, column: TokenTable, real: Tensor) -> tuple[Tensor, Carried]:
    (count,) = carried
    return count * real, (count + real,)


def _sequential_ahead(carried: Carried, count: int) -> Int[Tensor, "B n"]:
    return carried[0] + torch.arange(count, device=carried[0].device)


def _start_by_order(table: TokenTable) -> Carried:
    """The last token's position and order."""
    return _at_last(table, by_order(table)), _at_last(table, table.order)


def _by_order(carried: Carried, column: TokenTable, real: Tensor) -> tuple[Tensor, Carried]:
    position, order = carried
    order = torch.where(real, column.order, order)
    position = position + (order != carried[1])
    return position * real, (position, order)


def _time_height_width(carried: Carried, column: TokenTable, real: Tensor) -> tuple[Tensor, Carried]:
    time, carried = _by_order(carried, column, real)
    return torch.cat([time[..., None], grid_2d(column)], dim=-1), carried


def _start_mrope(table: TokenTable) -> Carried:
    """Where the last run of tokens begins, how far it reaches, and the last column's span."""
    begins, extent = mrope_runs(table)
    return begins[:, -1:], extent[:, -1:], table.span[:, -1:]


def _mrope(carried: Carried, column: TokenTable, real: Tensor) -> tuple[Tensor, Carried]:
    begin, extent, span = carried
    vision = column.span != NO_SPAN
    goes_on = vision & (column.span == span)
    begin = begin + extent * ~goes_on
    own = torch.where(vision, column.grid.amax(dim=-1) + 1, real.long())
    position = begin[..., None] + column.grid * vision[..., None]
    return position * real[..., None], (begin, torch.maximum(own, extent * goes_on), column.span)


FOLLOWING: dict[PositionScheme, Following] = {
    sequential: Following(_start_sequential, _sequential, _sequential_ahead),
    by_order: Following(_start_by_order, _by_order),
    grid_2d: Following(lambda table: (), lambda carried, column, real: (grid_2d(column), carried)),
    time_height_width: Following(_start_by_order, _time_height_width),
    mrope: Following(_start_mrope, _mrope),
}
"""By scheme: how it goes on."""
