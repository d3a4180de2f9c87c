"""A cache that forgets what is neither at the beginning nor recent, for text without end.

Shapes: B rows, K key/value heads, C capacity in tokens, D head width, V that of the values, L new tokens.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.tokens import TokenTable
from mmblocks.sequence.windows import mask_in_any_order
from mmblocks.trunks.caches.kv_cache import KVCache


class _Newest(NamedTuple):
    """The tokens read last, and where older ones made room for them what stood in their places.

    Attributes:
        number: of the tokens.
        places: where those of them are kept that are kept at all.
        table: what stood there.
        memory: by layer, keys and values of that.
    """

    number: int
    places: Int[Tensor, " K"] | None = None
    table: TokenTable | None = None
    memory: dict[int, tuple[Tensor, Tensor]] | None = None


class WindowedCache(KVCache):
    """Keeps the first tokens (attention sinks) and the most recent ones, so that a story may go on without end.

    Tokens keep the positions they were read at: a trunk that is to read beyond its trained length needs a ``rope_scaling``, or
    positions that do not grow. Several tokens read at once attend to each other and to all that is held; what is too much is
    forgotten after them. Only their table is kept of forgotten tokens, since positions are counted from it. What was read last can
    be taken back (``forget``), as passes over a span that is being written are: the window is then what it was before.

    Args:
        empty: an empty cache, whose memory this one takes over; its capacity is that of sinks and window together.
        sinks: how many of the first tokens are kept. Rows padded on the left would keep their padding, and are refused.

    Raises:
        ValueError: no room for a window.

    Source: StreamingLLM (arXiv 2309.17453), but for its positions, which count inside the cache.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import WindowedCache
        >>> trunk = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> cache = WindowedCache(trunk.new_cache(1, 4), sinks=1)
        >>> for _ in range(9):
        ...     one = TokenTable.text(1, 1)
        ...     hidden = trunk(torch.randn(1, 1, 32), one, cache, mask=cache.mask_for(one))
        >>> cache.length, cache.held
        (9, 4)
    """

    def __init__(self, empty: KVCache, *, sinks: int = 4) -> None:
        if not 0 <= sinks < empty.capacity:
            raise ValueError(f"sinks is {sinks}; accepted: 0 to {empty.capacity - 1}, as the capacity is {empty.capacity}")
        self.take_room(empty)
        self.sinks = sinks
        self.history = self.slots.slice(0, 0)
        self._announced = 0
        self._newest = _Newest(0)

    @property
    def free(self) -> int | None:
        """None: there is no end."""
        return None

    @property
    def held(self) -> int:
        """Tokens whose keys and values are there."""
        return min(self.length, self.capacity)

    @property
    def table(self) -> TokenTable:
        """Table of all tokens read, the forgotten ones included."""
        return self.history

    def mask_for(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """The mask of the tokens: each other, and what will still be held."""
        self._check(table)
        new = table.shape[1]
        if not self.length and self.sinks and bool(table.slice(0, self.sinks).is_padding.any()):
            raise ValueError(f"rows are padded on the left, where {self.sinks} sinks are to be kept; accepted: rows of one length")
        self._announced = new
        if not self.length:
            return lowered if rule is None else rule
        if new == 1:
            keys = TokenTable(*(column.clone() for column in self.slots))
            keys.write(int(self._places(self.length, 1)), table)
            keys = keys.slice(0, min(self.length + 1, self.capacity))
        else:
            held = self.slots.slice(0, self.held)
            keys = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(held, table, strict=True)))
        return mask_in_any_order(table, keys, rule)

    def append(self, table: TokenTable) -> TokenTable:
        """Notes the tokens; gives back the table of all tokens read.

        Raises:
            ValueError: if ``mask_for`` was not asked for them.
        """
        new = table.shape[1]
        if self._announced != new:
            raise ValueError(f"{new} tokens lack their mask; hand mask=cache.mask_for(table) to the trunk with them")
        self._announced = 0
        kept = self._kept(new)
        places = self._places(self.length, new)[kept]
        self._newest = _Newest(new)
        if self.length + new > self.capacity:
            self._newest = _Newest(new, places, TokenTable(*(column[:, places] for column in self.slots)), {})
        for column, added in zip(self.slots, table, strict=True):
            column[:, places] = added[:, kept]
        self.history = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(self.history, table, strict=True)))
        self.length += new
        return self.history

    def follow(self, table: TokenTable) -> TokenTable:
        """As ``append``."""
        return self.append(table)

    def update(
        self, layer: int, key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L V"]
    ) -> tuple[Float[Tensor, "B K L2 D"], Float[Tensor, "B K L2 V"]]:
        """Stores keys and values; gives back those the new tokens may see."""
        keys, values, new = self.keys[layer], self.values[layer], key.shape[2]
        before = self.length - new
        if new > 1:
            held = min(before, self.capacity)
            seen = torch.cat([keys[:, :, :held], key], dim=2), torch.cat([values[:, :, :held], value], dim=2)
        kept = self._kept(new, before)
        places = self._places(before, new)[kept]
        if self._newest.memory is not None:
            self._newest.memory[layer] = keys[:, :, places], values[:, :, places]
        keys[:, :, places], values[:, :, places] = key[:, :, kept], value[:, :, kept]
        return (keys[:, :, : self.held], values[:, :, : self.held]) if new == 1 else seen

    def forget(self, count: int) -> None:
        """Takes back what was read last, all of it, and brings back what had made room for it.

        Raises:
            ValueError: neither none nor all of the tokens that were read last; a layer that keeps a state.
        """
        newest = self._newest
        if count not in (0, newest.number):
            raise ValueError(f"count is {count}; accepted: 0 or {newest.number}, the tokens read last, out of a WindowedCache")
        super().forget(count)
        if not count:
            return
        self.history, self._newest = self.history.slice(0, self.length), _Newest(0)
        if newest.places is None or newest.table is None or newest.memory is None:
            return
        for column, before in zip(self.slots, newest.table, strict=True):
            column[:, newest.places] = before
        for layer, (keys, values) in newest.memory.items():
            self.keys[layer][:, :, newest.places], self.values[layer][:, :, newest.places] = keys, values

    def places(self, length: int) -> tuple[Int[Tensor, " L"], Int[Tensor, " C"], TokenTable]:
        """Which token of its row each of the newest ``length`` is, and each key; and the keys' table."""
        before = self.length - length
        held = self._numbers(self.length if length == 1 else before)
        newest = torch.arange(before, self.length, device=held.device)
        keys = held if length == 1 else torch.cat([held, newest])
        return newest, keys, TokenTable(*(column[:, keys] for column in self.history))

    def _numbers(self, read: int) -> Int[Tensor, " C"]:
        """Which tokens of their row are held after so many were read, in the order in which they are kept."""
        number = torch.arange(read, device=self.slots.document.device)
        kept = number[(number < self.sinks) | (number >= read - (self.capacity - self.sinks))]
        return kept[self._places(0, read)[kept].argsort()]

    def _places(self, first: int, count: int) -> Int[Tensor, " L"]:
        """Where tokens number ``first ...`` are kept: the sinks first, after them a ring."""
        number = torch.arange(first, first + count, device=self.slots.document.device)
        return torch.where(number < self.sinks, number, self.sinks + (number - self.sinks) % (self.capacity - self.sinks))

    def _kept(self, new: int, before: int | None = None) -> Tensor:
        """Which of the new tokens are still there after them."""
        before = self.length if before is None else before
        number = torch.arange(before, before + new, device=self.slots.document.device)
        return (number < self.sinks) | (number >= before + new - (self.capacity - self.sinks))

    def rows(self, index: Int[Tensor, " R"]) -> Self:
        """A cache of the chosen rows, as copies."""
        chosen = super().rows(index)
        chosen.history, chosen._newest = self.history.rows(index), _Newest(0)
        return chosen
