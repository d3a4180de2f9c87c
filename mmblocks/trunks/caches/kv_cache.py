"""What a decoder remembers of the tokens it has read: keys, values, states, and the tokens' table.

A cache belongs to one generation. The modules hold no state of it, so several generations can run on one model.

``KVCache`` hands out what it holds so far. ``StaticCache`` (``static_cache.py``) always hands out all its room, so that shapes
never change; ``WindowedCache`` (``windowed_cache.py``) forgets what is neither at the beginning nor recent.

Shapes: B rows, K key/value heads, C capacity in tokens, D head width, V that of the values, L new tokens.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.layers.attention.gated_cross_attention import ReadableImages
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.past import Past
from mmblocks.sequence.tokens import TokenTable, packed, unpacked
from mmblocks.sequence.windows import in_reading_order
from mmblocks.support.deprecation import former_method


def cache_bytes(
    *,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    batch: int,
    capacity: int,
    dtype: torch.dtype = torch.float32,
    value_dim: int | None = None,
) -> int:
    """Memory that the keys and values of a cache take, in bytes, told beforehand. Guidance multiplies ``batch`` by its streams.

    Examples:
        >>> from mmblocks.trunks import cache_bytes
        >>> cache_bytes(num_layers=32, num_heads=8, head_dim=128, batch=1, capacity=4096) // 2**20  # MiB, in float32
        1024
    """
    widths = head_dim + (head_dim if value_dim is None else value_dim)
    return num_layers * num_heads * widths * batch * capacity * dtype.itemsize


class Memory(NamedTuple):
    """What one layer remembers of a row.

    Attributes:
        num_heads, head_dim: K and D of the keys of each token; 0 heads for a layer that keeps none.
        value_dim: V, where it is not D.
        state: shape of what is remembered whatever the number of tokens, in float32, such as that of a recurrence; None for none.

    Examples:
        >>> from mmblocks.trunks import KVCache, Memory
        >>> cache = KVCache(layers=[Memory(num_heads=2, head_dim=8), Memory(state=(32,))], batch=1, capacity=16)
        >>> tuple(cache.keys[0].shape), tuple(cache.states[1].shape)
        ((1, 2, 16, 8), (1, 32))
    """

    num_heads: int = 0
    head_dim: int = 0
    value_dim: int | None = None
    state: tuple[int, ...] | None = None


MOST_NOTED = 64
"""Columns of the table that are put aside before they are written together."""


class KVCache:
    """Keys and values of all layers, in memory taken once.

    Args:
        layers: what each layer remembers.
        batch: rows.
        capacity: tokens a row can hold.
        dtype: of keys and values.
        device: of everything.

    Attributes:
        states: by layer, (B, *state); zeros where nothing has been read, and None for a layer without.
        images: by layer, what cross-attention keeps of the images it has read.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> trunk = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> cache, table, embeds = trunk.new_cache(1, 5), TokenTable.text(1, 5), torch.randn(1, 5, 32)
        >>> steps = [trunk(embeds[:, i : i + 1], table.slice(i, i + 1), cache) for i in range(5)]
        >>> torch.allclose(torch.cat(steps, dim=1), trunk(embeds, table), atol=1e-5)
        True
    """

    _past: Past | None = None  # what the tokens held say of the next one; None where nobody has looked

    def __init__(
        self,
        *,
        layers: Sequence[Memory],
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        def room(layer: Memory, width: int) -> Tensor:
            return torch.zeros(batch, layer.num_heads, capacity, width, dtype=dtype, device=device)

        self.keys = [room(layer, layer.head_dim) for layer in layers]
        self.values = [room(layer, layer.head_dim if layer.value_dim is None else layer.value_dim) for layer in layers]
        self.states = [
            None if layer.state is None else torch.zeros(batch, *layer.state, dtype=torch.float32, device=device)
            for layer in layers
        ]
        self.images: dict[int, ReadableImages] = {}
        self.slots = TokenTable.padding(batch, capacity, device)
        self.length = 0

    @property
    def slots(self) -> TokenTable:
        """The table of all its room, (B, C), with padding where nothing was read."""
        self._write_noted()
        return self._slots

    @slots.setter
    def slots(self, slots: TokenTable) -> None:
        self._slots = slots
        self._noted: list[Tensor] = []

    @property
    def batch(self) -> int:
        """Rows."""
        return self._slots.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self._slots.shape[1]

    @property
    def free(self) -> int | None:
        """Tokens that can still be read; None where there is no end."""
        return self.capacity - self.length

    @property
    def table(self) -> TokenTable:
        """Table of the tokens held so far."""
        return self.slots.slice(0, self.length)

    @property
    def num_bytes(self) -> int:
        """Memory of keys, values and states, those of images included, in bytes, filled or not."""
        states = (state for state in self.states if state is not None)
        images = (tensor for kept in self.images.values() for tensor in (kept.key, kept.value))
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values, *states, *images))

    def mask_for(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """What to hand to the trunk as ``mask`` with these tokens, which are about to be read.

        Args:
            table: the tokens.
            rule: which tokens attend to which, in place of the table's own rule.
            lowered: the mask of the tokens among themselves, where it is known; used while the cache is empty.

        Raises:
            ValueError: if they do not fit, or the number of rows differs.
        """
        self._check(table)
        return lowered if rule is None and not self.length else rule

    see = former_method("see", "mask_for")

    def append(self, table: TokenTable) -> TokenTable:
        """Notes tokens that are about to be read; their keys and values follow, layer by layer, through ``update``.

        Returns:
            The table of all tokens, the new ones included.

        Raises:
            ValueError: if they do not fit, or the number of rows differs.
        """
        self._note(table)
        keys = self.table
        if self._past is not None:
            self._past.keys = keys
        return keys

    def follow(self, table: TokenTable) -> Past | TokenTable:
        """As ``append``, but what is known of the newest token takes the table's place where that says the same."""
        self._note(table)
        return self.table if self._past is None else self._past

    def _note(self, table: TokenTable) -> None:
        self._check(table)
        past, length = self._past_before(table), self.length + table.shape[1]
        if past is not None and past.read(table, lambda: self.slots.slice(0, length)):
            self._past = past
            self._noted.append(packed(table))
        else:
            self._past = None
            self.slots.write(self.length, table)
        self.length = length
        if len(self._noted) == MOST_NOTED:
            self._write_noted()

    def _write_noted(self) -> None:
        """Writes the columns that were put aside, which are those of the newest tokens, where they belong."""
        if not self._noted:
            return
        columns = torch.stack(self._noted, dim=1)
        first = self.length - len(self._noted)
        self._noted = []
        self._slots.write(first, unpacked(columns))

    def _past_before(self, table: TokenTable) -> Past | None:
        """What the tokens held say of these, where they come one by one and may be looked at without waiting for them."""
        if table.shape[1] != 1 or table.document.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if self._past is not None and self._past.length == self.length:
            return self._past
        return Past.of(self.slots, self.length)

    def past_of(self, keys: TokenTable) -> Past | None:
        """What is known of the newest token without looking at the whole row: of the table that ``append`` gave last, or None."""
        return self._past if self._past is not None and self._past.keys is keys else None

    def update(
        self, layer: int, key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L V"]
    ) -> tuple[Float[Tensor, "B K L2 D"], Float[Tensor, "B K L2 V"]]:
        """Stores the keys and values of the tokens last appended; gives back those of all tokens."""
        start = self.length - key.shape[2]
        self.keys[layer][:, :, start : self.length] = key
        self.values[layer][:, :, start : self.length] = value
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def keep_state(self, layer: int, state: Float[Tensor, "B *state"]) -> None:
        """Puts a layer's new state in the place of the old one.

        Raises:
            ValueError: a layer without a state, or one of another shape.
        """
        self.states[layer] = state.to(self._state(layer, state).dtype)

    def _state(self, layer: int, new: Tensor) -> Tensor:
        """The state that a new one takes the place of."""
        kept = self.states[layer]
        if kept is None or kept.shape != new.shape:
            accepted = "none, as its memory has no state" if kept is None else tuple(kept.shape)
            raise ValueError(f"the state of layer {layer} has shape {tuple(new.shape)}; accepted: {accepted}")
        return kept

    def forget(self, count: int) -> None:
        """Takes back the newest tokens, as if they had not been read: for what is read anew in each pass.

        Raises:
            ValueError: more tokens than were read, or a layer that keeps a state, out of which no token can be taken.
        """
        if not 0 <= count <= self.length:
            raise ValueError(f"count is {count}; accepted: 0 to {self.length}, the tokens read")
        kept = [layer for layer, state in enumerate(self.states) if state is not None]
        if kept:
            raise ValueError(f"layers {kept} keep a state, out of which no token can be taken; accepted: layers of attention alone")
        self._write_noted()
        self.length -= count
        self._past = None

    def grow(self, count: int) -> None:
        """Takes room for so many tokens more; what is held is copied."""

        def longer(memory: Tensor) -> Tensor:
            rows, heads, _, width = memory.shape
            return torch.cat([memory, memory.new_zeros(rows, heads, count, width)], dim=2)

        self.keys, self.values = [longer(keys) for keys in self.keys], [longer(values) for values in self.values]
        slots = TokenTable.padding(self.batch, self.capacity + count, self.slots.document.device)
        slots.write(0, self.slots)
        self.slots, self._past = slots, None

    def places(self, length: int) -> tuple[Int[Tensor, " L"], Int[Tensor, " C"], TokenTable]:
        """Which token of its row each of the newest ``length`` is, and each key that ``update`` gives back; and the keys' table."""
        return *in_reading_order(length, self.length, self.slots.document.device), self.table

    def rows(self, index: Int[Tensor, " R"]) -> Self:
        """A cache of the chosen rows, as copies: to drop finished rows or repeat one."""
        chosen = copy(self)
        chosen.states = [None if state is None else state[index] for state in self.states]
        chosen.images = {layer: kept.rows(index) for layer, kept in self.images.items()}
        chosen.keys = [keys[index] for keys in self.keys]
        chosen.values = [values[index] for values in self.values]
        chosen.slots = self.slots.rows(index)
        chosen._past = None
        return chosen

    def _check(self, table: TokenTable) -> None:
        batch, new = table.shape
        if batch != self.batch:
            raise ValueError(f"table has {batch} rows; the cache was made for {self.batch}")
        if self.free is not None and new > self.free:
            raise ValueError(
                f"{new} tokens after {self.length} do not fit a cache of {self.capacity}: make it with a larger capacity"
            )

    def take_room(self, empty: "KVCache") -> None:
        """Goes on in the memory of another cache."""
        if empty.length:
            raise ValueError(f"the cache holds {empty.length} tokens; accepted: an empty one, such as trunk.new_cache(...) gives")
        self.keys, self.values, self.states = empty.keys, empty.values, empty.states
        self.images, self.slots, self.length, self._past = empty.images, empty.slots, 0, None
