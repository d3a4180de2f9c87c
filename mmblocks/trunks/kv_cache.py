"""What a decoder remembers of the tokens it has read: keys, values, and the tokens' table.

A cache belongs to one generation. The modules hold no state of it, so several generations can run on one model.

Shapes: B rows, K key/value heads, C capacity in tokens, D head width.
"""

from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.tokens import TokenTable


class KVCache:
    """Keys and values of all layers, in memory taken once.

    Args:
        num_layers, num_heads, head_dim: of the trunk's keys and values.
        batch: rows.
        capacity: tokens a row can hold.
        dtype, device: of keys and values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, num_heads, capacity, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.slots = TokenTable.padding(batch, capacity, device)
        self.length = 0

    @property
    def batch(self) -> int:
        """Rows."""
        return self.slots.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.slots.shape[1]

    @property
    def table(self) -> TokenTable:
        """Table of the tokens held so far."""
        return self.slots.slice(0, self.length)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values, in bytes, filled or not."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def append(self, table: TokenTable) -> TokenTable:
        """Notes tokens that are about to be read; their keys and values follow, layer by layer, through ``update``.

        Returns:
            The table of all tokens, the new ones included.

        Raises:
            ValueError: if they do not fit, or the number of rows differs.
        """
        batch, new = table.shape
        if batch != self.batch:
            raise ValueError(f"table has {batch} rows; the cache was made for {self.batch}")
        if self.length + new > self.capacity:
            raise ValueError(
                f"{new} tokens behind {self.length} do not fit a cache of {self.capacity}: make it with a larger capacity"
            )
        self.slots.write(self.length, table)
        self.length += new
        return self.table

    def update(
        self, layer: int, key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L D"]
    ) -> tuple[Float[Tensor, "B K L2 D"], Float[Tensor, "B K L2 D"]]:
        """Stores the keys and values of the tokens last appended; gives back those of all tokens."""
        start = self.length - key.shape[2]
        self.keys[layer][:, :, start : self.length] = key
        self.values[layer][:, :, start : self.length] = value
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def rows(self, index: Int[Tensor, " R"]) -> "KVCache":
        """A cache of the chosen rows, as copies: to drop finished rows or repeat one."""
        chosen = copy(self)
        chosen.keys = [keys[index] for keys in self.keys]
        chosen.values = [values[index] for values in self.values]
        chosen.slots = self.slots.rows(index)
        return chosen
