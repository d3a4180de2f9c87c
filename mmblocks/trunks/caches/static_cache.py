"""A cache whose shapes never change, for ``torch.compile`` and CUDA graphs.

Shapes: B rows, K key/value heads, C capacity in tokens, D head width, V that of the values, L new tokens.
"""

from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.ops.cuda_graphs import Recording, new_pool
from mmblocks.roles import Trunk
from mmblocks.sequence.masks import Dense, Mask, MaskRule
from mmblocks.sequence.tokens import TokenTable
from mmblocks.sequence.windows import mask_in_any_order
from mmblocks.trunks.caches.kv_cache import KVCache


class StaticCache(KVCache):
    """A cache whose tensors never change their shape or place, so that a compiled step is compiled once.

        cache = StaticCache(model.trunk.new_cache(batch, capacity))
        model.trunk.compile()
        model.generate(..., cache=cache)

    On CUDA ``StaticCache(..., cuda_graphs=True)`` records a generation's step as a CUDA graph instead, without compiling anything,
    and replays it for every token: the launches of its kernels, which small models wait for, are one.

    ``mask_for`` does the book-keeping outside the graph; its mask goes with the tokens. Each step computes attention over the
    whole capacity, so make it no larger than needed. The first tokens are read among themselves.

    Args:
        empty: an empty cache, whose memory this one takes over.
        cuda_graphs: whether ``run`` records and replays steps. The graph belongs to the cache, and so to one generation.

    Raises:
        ValueError: a cache that is in use, or CUDA graphs on another device.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import StaticCache
        >>> trunk = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> cache, table, embeds = StaticCache(trunk.new_cache(1, 8)), TokenTable.text(1, 5), torch.randn(1, 5, 32)
        >>> steps = []
        >>> for i in range(5):
        ...     one = table.slice(i, i + 1)
        ...     steps.append(trunk(embeds[:, i : i + 1], one, cache, mask=cache.mask_for(one)))
        >>> torch.allclose(torch.cat(steps, dim=1), trunk(embeds, table), atol=1e-5)
        True
    """

    def __init__(self, empty: KVCache, *, cuda_graphs: bool = False) -> None:
        device = empty.slots.document.device
        if cuda_graphs and device.type != "cuda":
            raise ValueError(f"cuda_graphs is True and the cache is on {device}; accepted: a cache on CUDA, or False")
        self.take_room(empty)
        self.cuda_graphs = cuda_graphs
        self._step: Recording | None = None
        self.recent = TokenTable.padding(*self.slots.shape, device)
        self.places_of_new = torch.zeros(0, dtype=torch.long, device=device)
        self.alone = True
        if device.type == "cuda":
            states = (state for state in self.states if state is not None)
            for tensor in (*self.keys, *self.values, *states):
                torch._dynamo.mark_static_address(tensor)  # CUDA graphs write to it in place

    def mask_for(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """Notes the tokens, and gives the mask they are read under."""
        self._check(table)
        new = table.shape[1]
        self.alone = self.length == 0
        self.places_of_new = torch.arange(self.length, self.length + new, device=self.places_of_new.device)
        self.slots.write(self.length, table)
        for column, added in zip(self.recent, table, strict=True):
            column.copy_(torch.cat([column[:, new:], added], dim=1))
        self.length += new
        if self.alone:
            return lowered if rule is None else rule
        return mask_in_any_order(table, self.slots, rule)

    def append(self, table: TokenTable) -> TokenTable:
        """The table of the newest tokens, as many as the cache has room for, the last one last.

        Raises:
            ValueError: if ``mask_for`` was not asked for them.
        """
        if self.places_of_new.shape[0] != table.shape[1]:
            raise ValueError(f"{table.shape[1]} tokens lack their mask; hand mask=cache.mask_for(table) to the trunk with them")
        return table if self.alone else self.recent

    def follow(self, table: TokenTable) -> TokenTable:
        """As ``append``."""
        return self.append(table)

    def update(
        self, layer: int, key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L V"]
    ) -> tuple[Float[Tensor, "B K L2 D"], Float[Tensor, "B K L2 V"]]:
        """Stores keys and values; gives back the whole room, or the first tokens' own."""
        self.keys[layer].index_copy_(2, self.places_of_new, key)
        self.values[layer].index_copy_(2, self.places_of_new, value)
        return (key, value) if self.alone else (self.keys[layer], self.values[layer])

    def keep_state(self, layer: int, state: Float[Tensor, "B *state"]) -> None:
        """Writes a layer's new state over the old one."""
        self._state(layer, state).copy_(state)

    def forget(self, count: int) -> None:
        """Takes back the newest tokens; see ``KVCache.forget``."""
        super().forget(count)
        padding = TokenTable.padding(self.batch, count, self.slots.document.device)
        self.slots.write(self.length, padding)
        for column, added in zip(self.recent, padding, strict=True):
            column.copy_(torch.cat([added, column[:, : self.capacity - count]], dim=1))

    def places(self, length: int) -> tuple[Int[Tensor, " L"], Int[Tensor, " C"], TokenTable]:
        """Which token of its row each new one is, and each key; and the keys' table."""
        if self.alone:
            return super().places(length)
        return self.places_of_new, torch.arange(self.capacity, device=self.places_of_new.device), self.slots

    def run(self, trunk: Trunk, embeds: Tensor, table: TokenTable, mask: Mask | MaskRule | None) -> Tensor:
        """The trunk's states of tokens that ``mask_for`` was asked for: by calling it, or by replaying its step.

        Raises:
            TypeError: a trunk whose step cannot be recorded.
        """
        if not self.cuda_graphs:
            return trunk(embeds, table, self, mask=mask)
        _check_recordable(trunk)
        if self.alone or table.shape[1] > 1 or not isinstance(mask, Dense):
            return trunk(embeds, table, self, mask=mask)
        inputs = (embeds, mask.visible, self.places_of_new, *table)
        if self._step is None:
            states = [(state, state.clone()) for state in self.states if state is not None]
            self._step = Recording(partial(self._called, trunk), inputs, new_pool())
            for state, before in states:  # keys and values are written again, but recording has moved states on
                state.copy_(before)
        return self._step(inputs)

    def _called(self, trunk: Trunk, embeds: Tensor, visible: Tensor, places: Tensor, *table: Tensor) -> Tensor:
        """A step as a function of tensors alone, beside the cache's own, which stay where they are."""
        self.places_of_new = places
        return trunk(embeds, TokenTable(*table), self, mask=Dense(visible))

    def rows(self, index: Int[Tensor, " R"]) -> Self:
        """A cache of the chosen rows, as copies."""
        chosen = super().rows(index)
        chosen.recent = self.recent.rows(index)
        chosen._step = None  # it works on the memory of all rows
        return chosen


def _check_recordable(trunk: Trunk) -> None:
    """Refuses a trunk whose step asks the device for values, copies to it, or calls functions that a replay would not."""
    if not getattr(trunk, "static_step", False):  # a trunk of one's own need not know the attribute
        accepted = "one whose static_step is True, as of a Decoder whose parts all say so, without experts"
        raise TypeError(f"trunk is a {type(trunk).__name__}, whose steps cannot be recorded as CUDA graphs; accepted: {accepted}")
