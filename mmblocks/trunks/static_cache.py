"""A cache whose shapes never change, for ``torch.compile`` and CUDA graphs.

Shapes: B rows, K key/value heads, C capacity in tokens, D head width, V that of the values, L new tokens.
"""

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.masks import Mask, MaskRule
from mmblocks.tokens import TokenTable
from mmblocks.trunks.kv_cache import KVCache, see_anywhere


class StaticCache(KVCache):
    """A cache whose tensors never change their shape or place, so that a compiled step is compiled once.

        cache = StaticCache(model.trunk.new_cache(batch, capacity))
        model.trunk.compile()  # or compile(mode="reduce-overhead"), which replays CUDA graphs
        model.generate(..., cache=cache)

    ``see`` does the book-keeping outside the graph; its mask goes with the tokens. Each step computes attention over the
    whole capacity, so make it no larger than needed. The first tokens are read among themselves.

    Args:
        empty: an empty cache, whose memory this one takes over.
    """

    def __init__(self, empty: KVCache) -> None:
        self.take_room(empty)
        device = self.slots.document.device
        self.recent = TokenTable.padding(*self.slots.shape, device)
        self.places = torch.zeros(0, dtype=torch.long, device=device)
        self.alone = True
        if device.type == "cuda":
            for tensor in (*self.keys, *self.values):
                torch._dynamo.mark_static_address(tensor)  # CUDA graphs write to it in place

    def see(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """Notes the tokens, and says whom they see."""
        self._check(table)
        new = table.shape[1]
        self.alone = self.length == 0
        self.places = torch.arange(self.length, self.length + new, device=self.places.device)
        self.slots.write(self.length, table)
        for column, added in zip(self.recent, table, strict=True):
            column.copy_(torch.cat([column[:, new:], added], dim=1))
        self.length += new
        if self.alone:
            return lowered if rule is None else rule
        return see_anywhere(table, self.slots, rule)

    def append(self, table: TokenTable) -> TokenTable:
        """The table of the newest tokens, as many as the cache has room for, the last one last.

        Raises:
            ValueError: if ``see`` was not asked for them.
        """
        if self.places.shape[0] != table.shape[1]:
            raise ValueError(f"{table.shape[1]} tokens are read unseen; hand mask=cache.see(table) to the trunk with them")
        return table if self.alone else self.recent

    def update(
        self, layer: int, key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L V"]
    ) -> tuple[Float[Tensor, "B K L2 D"], Float[Tensor, "B K L2 V"]]:
        """Stores keys and values; gives back the whole room, or the first tokens' own."""
        self.keys[layer].index_copy_(2, self.places, key)
        self.values[layer].index_copy_(2, self.places, value)
        return (key, value) if self.alone else (self.keys[layer], self.values[layer])

    def rows(self, index: Int[Tensor, " R"]) -> Self:
        """A cache of the chosen rows, as copies."""
        chosen = super().rows(index)
        chosen.recent = self.recent.rows(index)
        return chosen
