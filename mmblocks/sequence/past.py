"""What the tokens of a row say of one token more: which of them it attends to, and where it stands. Kept beside a cache.

``masks.lower`` and the position schemes look at whole rows. While a row is written token by token, almost all of it is as it was
one step before: ``Past`` keeps what was found, and each token adds a column.

Shapes: B rows, T tokens read, C tokens there is room for.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from mmblocks.sequence.documents import last_real
from mmblocks.sequence.following import FOLLOWING, Carried
from mmblocks.sequence.masks import Causal, Dense
from mmblocks.sequence.positions import PositionScheme
from mmblocks.sequence.tokens import TokenTable


class _Positions(NamedTuple):
    """What one scheme said of the first ``length`` tokens, and what it needs to say more."""

    values: Tensor
    carried: Carried
    length: int


class Past:
    """Rows of clean tokens, to which single tokens are added.

    It speaks of rows in which each token to come is padding, or is clean, belongs to the document of the last token before it, and
    has an order no smaller than any of that document's. Such a token attends to all of its document, whatever stands in it.
    Of all other tokens ``of`` and ``read`` say that they are none of this kind: they are looked at anew.

    Attributes:
        length: T.
        keys: the table of the tokens read, the newest included.
        mask: what the newest token attends to: as ``masks.lower`` has it.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence.past import Past
        >>> table = TokenTable.text(1, 8)
        >>> past = Past.of(table, 5)
        >>> past.read(table.slice(5, 6), table.slice(0, 6)), past.mask
        (True, Causal())
        >>> past.read(table.slice(5, 6)._replace(noisy=table.noisy[:, :1] | True), table.slice(0, 7))
        False
    """

    keys: TokenTable
    mask: Causal | Dense

    def __init__(self, attended: Bool[Tensor, "B C"], length: int, document: Tensor, order: Tensor) -> None:
        self.length = length
        self._attended, self._document, self._order = attended, document, order
        self._all_attended = bool(attended[:, :length].all())
        self._positions: dict[PositionScheme, _Positions] = {}

    @classmethod
    def of(cls, slots: TokenTable, length: int) -> "Past | None":
        """What the first ``length`` tokens say; None where they are of another kind.

        Args:
            slots: (B, C), of which the first tokens were read.
            length: T.
        """
        with torch.inference_mode(False):  # it may be written to outside of that mode later
            table = slots.slice(0, length)
            if not length or bool(table.noisy.any()):
                return None
            last = last_real(table)[:, -1:]
            if bool((last < 0).any()):
                return None
            document, order = table.document.gather(1, last), table.order.gather(1, last)
            attended = torch.zeros_like(slots.noisy)
            attended[:, :length] = table.document == document
            if bool((attended[:, :length] & (table.order > order)).any()):
                return None
            return cls(attended, length, document, order)

    def read(self, column: TokenTable, keys: TokenTable) -> bool:
        """Adds a token to each row.

        Args:
            column: (B, 1) the tokens.
            keys: (B, T + 1) all tokens with them.

        Returns:
            Whether they are of the kind that this speaks of. If not, nothing more can be said of these rows.
        """
        # The document of the last token is none of padding's: what follows is real.
        real = follows = (column.document == self._document) & (column.order >= self._order) & ~column.noisy
        all_real = bool(follows.all())
        if not all_real:
            real = ~column.is_padding
            if not bool((follows | ~real).all()):
                return False
        self._attended[:, self.length : self.length + 1] = real
        self.length += 1
        self._order = column.order if all_real else torch.where(real, column.order, self._order)
        self._all_attended = self._all_attended and all_real
        self._column, self._real, self.keys = column, real, keys
        self.mask = Causal() if self._all_attended else Dense(self._seen(all_real))
        return True

    def _seen(self, all_real: bool) -> Bool[Tensor, "B 1 T"]:
        """What each newest token attends to; padding attends to itself."""
        attended = self._attended[:, None, : self.length]
        if all_real:
            return attended
        itself = torch.arange(self.length, device=attended.device) == self.length - 1
        return torch.where(self._real[..., None], attended, itself)

    def positions(self, scheme: PositionScheme) -> Tensor:
        """Positions of all tokens: computed for the newest alone where the scheme can go on, see ``following``; (B, T, ...)."""
        following = FOLLOWING.get(scheme) if isinstance(scheme, Hashable) else None
        if following is None:
            return scheme(self.keys)
        kept = self._positions.get(scheme)
        if kept is None or kept.length < self.length - 1:
            with torch.inference_mode(False):
                found = scheme(self.keys)
                values = found.new_zeros(self._attended.shape + found.shape[2:])
                values[:, : self.length] = found
                kept = _Positions(values, following.start(self.keys), self.length)
        elif kept.length < self.length:
            found, carried = following.step(kept.carried, self._column, self._real)
            kept.values[:, self.length - 1 : self.length] = found
            kept = _Positions(kept.values, carried, self.length)
        self._positions[scheme] = kept
        return kept.values[:, : self.length]
