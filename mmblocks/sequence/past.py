"""What the tokens of a row say of one token more: which of them it attends to, and where it stands. Kept beside a cache.

``masks.lower`` and the position schemes look at whole rows. While a row is written token by token, almost all of it is as it was
one step before: ``Past`` keeps what was found, and each token adds a column.

Shapes: B rows, T tokens read, C tokens there is room for.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmblocks.sequence.documents import last_real
from mmblocks.sequence.following import FOLLOWING, Carried, Following
from mmblocks.sequence.masks import Causal, Dense
from mmblocks.sequence.positions import PositionScheme
from mmblocks.sequence.tokens import TokenTable


class _Positions(NamedTuple):
    """What one scheme said of the first ``length`` tokens, and what it needs to say more.

    ``length`` may be greater than the number of tokens read, where the scheme knows what it will say.
    """

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

    mask: Causal | Dense
    _keys: TokenTable | Callable[[], TokenTable]

    def __init__(self, attended: Bool[Tensor, "B 1 C"], length: int, document: Tensor, order: Tensor) -> None:
        self.length = length
        self._attended, self._document, self._order = attended, document, order
        self._all_attended = bool(attended.all())
        self._added = _as_scores(attended[:, None])
        self._all_real = True  # of the tokens read so far one by one
        self._positions: dict[PositionScheme, _Positions] = {}

    @property
    def keys(self) -> TokenTable:
        """The table of the tokens read, the newest included."""
        if not isinstance(self._keys, TokenTable):
            self._keys = self._keys()
        return self._keys

    @keys.setter
    def keys(self, keys: TokenTable) -> None:
        self._keys = keys

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
            attended = torch.ones_like(slots.noisy)[:, None]  # where nothing is yet, as if all that comes were real
            attended[:, 0, :length] = table.document == document
            if bool((attended[:, 0, :length] & (table.order > order)).any()):
                return None
            return cls(attended, length, document, order)

    def read(self, column: TokenTable, keys: TokenTable | Callable[[], TokenTable]) -> bool:
        """Adds a token to each row.

        Args:
            column: (B, 1) the tokens.
            keys: (B, T + 1) all tokens with them, or what gives these if they are looked at.

        Returns:
            Whether they are of the kind that this speaks of. If not, nothing more can be said of these rows.
        """
        # The document of the last token is none of padding's: what follows is real.
        rising = column.order >= self._order
        all_real = torch.equal(column.document, self._document) and bool(rising.all()) and not bool(column.noisy.any())
        real = rising
        if not all_real:
            real = ~column.is_padding
            follows = (column.document == self._document) & rising & ~column.noisy
            if not bool((follows | ~real).all()):
                return False
            self._note_unread(real)
        self.length += 1
        self._order = column.order if all_real else torch.where(real, column.order, self._order)
        self._column, self._real, self._keys = column, real, keys
        self.mask = Causal() if self._all_attended else self._seen(all_real)
        return True

    def _note_unread(self, real: Bool[Tensor, "B 1"]) -> None:
        """Notes which of the tokens that are about to be read nothing attends to, and forgets what was said of tokens to come."""
        self._all_attended = False
        self._attended[..., self.length] = real
        self._added[..., self.length] = _as_scores(real[:, None])
        if self._all_real:
            self._positions = {scheme: kept for scheme, kept in self._positions.items() if kept.length <= self.length}
            self._all_real = False

    def _seen(self, all_real: bool) -> Dense:
        """What each newest token attends to; padding attends to itself."""
        attended = self._attended[..., : self.length]
        if all_real:
            return Dense(attended, self._added[..., : self.length])
        itself = torch.arange(self.length, device=attended.device) == self.length - 1
        return Dense(torch.where(self._real[..., None], attended, itself))

    def positions(self, scheme: PositionScheme) -> Tensor:
        """Positions of all tokens: computed for the newest alone where the scheme can go on, see ``following``; (B, T, ...)."""
        following = FOLLOWING.get(scheme) if isinstance(scheme, Hashable) else None
        if following is None:
            return scheme(self.keys)
        kept = self._positions.get(scheme)
        if kept is None or kept.length < self.length - 1:
            with torch.inference_mode(False):
                kept = self._all_positions(scheme, following)
        elif kept.length < self.length:
            found, carried = following.step(kept.carried, self._column, self._real)
            kept.values[:, self.length - 1 : self.length] = found
            kept = _Positions(kept.values, carried, self.length)
        self._positions[scheme] = kept
        return kept.values[:, : self.length]

    def _all_positions(self, scheme: PositionScheme, following: Following) -> _Positions:
        """Of all tokens read, and where nothing else is to be expected those of all to come."""
        found, carried = scheme(self.keys), following.start(self.keys)
        rows, _, capacity = self._attended.shape
        values = found.new_zeros(rows, capacity, *found.shape[2:])
        values[:, : self.length] = found
        if following.ahead is None or not self._all_real:
            return _Positions(values, carried, self.length)
        values[:, self.length :] = following.ahead(carried, capacity - self.length)
        return _Positions(values, carried, capacity)


def _as_scores(attended: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 where attended to, minus infinity elsewhere."""
    return torch.zeros_like(attended, dtype=torch.float32).masked_fill_(~attended, float("-inf"))
