"""Rows that have lost some of their tokens, and which of them attend to which.

Shapes: B rows, M tokens that are left, S tokens a stage has read in all, D width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.sequence.masks import Causal, Dense, Intervals, Mask, MaskRule, densify, find_mask
from mmblocks.sequence.positions import RotaryTable
from mmblocks.sequence.spans import NO_CONDITION, Conditions
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.pruned.cache import NOWHERE


class Row(NamedTuple):
    """The new tokens as a stage reads them.

    Attributes:
        x, table: states and metadata.
        angles: by name.
        places: of each among all new tokens.
        conditions: what layers are told, with an entry for each token; None for nothing.
    """

    x: Float[Tensor, "B M D"]
    table: TokenTable
    angles: dict[str, RotaryTable]
    places: Int[Tensor, "B M"]
    conditions: Conditions | None = None

    def at(self, index: Int[Tensor, "B M2"], real: Tensor) -> "Row":
        """The tokens at these places of the row, with padding where they are not real."""
        blank = TokenTable.padding(len(index), index.shape[1], index.device)
        told = self.conditions
        columns = [_where(real, _take(old, index), new) for old, new in zip(self.table, blank, strict=True)]
        return Row(
            x=_take(self.x, index) * real[..., None],
            table=TokenTable(*columns),
            angles={name: RotaryTable(_take(found.cos, index), _take(found.sin, index)) for name, found in self.angles.items()},
            places=torch.where(real, _take(self.places, index), NOWHERE),
            conditions=told and told._replace(of=torch.where(real, _take(told.of, index), NO_CONDITION)),
        )


def stage_mask(
    mask: Mask | MaskRule | None,
    row: Row,
    read: TokenTable,
    numbers: Int[Tensor, "B S"],
    *,
    num_old: int,
    num_new: int,
) -> Mask:
    """Which of the tokens that are left attend to which, in the cheapest form.

    Args:
        mask: of all tokens.
        row: the queries.
        read: the table of the keys, and
        numbers: which token of the whole row each of them is.
        num_old: tokens of the whole row before the new ones.
        num_new: new ones, before any was dropped.
    """
    if mask is None or callable(mask):
        return find_mask(mask, row.table, read)
    padding, is_real = numbers == NOWHERE, row.places != NOWHERE
    alone = numbers.shape == row.places.shape
    if isinstance(mask, Causal) and (not bool(padding.any()) or (alone and bool((padding[:, 1:] >= padding[:, :-1]).all()))):
        return mask
    places = row.places.clamp(min=0)
    slots = torch.arange(numbers.shape[1], device=numbers.device)[-places.shape[1] :].expand_as(places)
    # Numbers rise along a row, so an interval of all tokens is one of those that are left, unless padding lies in between.
    after = padding & ((~padding).long().cumsum(dim=1) > 0)
    ascending = torch.where(after, num_old + num_new, numbers)
    if isinstance(mask, Causal | Intervals) and bool((ascending[:, 1:] >= ascending[:, :-1]).all()):
        start, end = (0 * places, num_old + places + 1) if isinstance(mask, Causal) else (_take(edge, places) for edge in mask)
        left = (torch.searchsorted(ascending, edge.contiguous()) for edge in (start, end))
        return Intervals(*(torch.where(is_real, edge, own) for edge, own in zip(left, (slots, slots + 1), strict=True)))
    seen = densify(mask, num_new, num_old + num_new, numbers.device).expand(len(places), -1, -1)
    seen = _take(_take(seen, places).mT, numbers.clamp(min=0)).mT & ~padding[:, None]
    itself = slots[..., None] == torch.arange(numbers.shape[1], device=numbers.device)
    return Dense(torch.where(is_real[..., None], seen, itself))


def _take(column: Tensor, index: Int[Tensor, "B M"]) -> Tensor:
    return column.gather(1, index if column.ndim == 2 else index[..., None].expand(-1, -1, column.shape[-1]))


def _where(flags: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(flags if yes.ndim == 2 else flags[..., None], yes, no)
