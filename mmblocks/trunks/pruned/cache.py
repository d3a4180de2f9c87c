"""What a decoder that drops tokens between its layers remembers: in each layer, only what that layer has read.

Shapes: B rows, M new tokens of a stage, S tokens a stage has read in all.
"""

from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache, Memory

NOWHERE = -1
"""Number of a padding token."""


class Held(NamedTuple):
    """What the layers of one stage remember.

    Attributes:
        cache: their keys and values, and the table of the tokens they have read.
        numbers: which token of the whole row each of those is; ``NOWHERE`` at padding.
    """

    cache: KVCache
    numbers: Int[Tensor, "B S"]


class PrunedCache:
    """Keys and values of each stage, for the tokens that the stage has read and no others.

    The memory of the first stage is taken at once; that of the others when the first tokens come, since only then it is known
    how many are dropped. Has the methods of a ``KVCache`` that generation uses.

    Args:
        whole: an empty cache of the first stage, with room for all tokens.
        stages: what each layer of the trunk remembers, stage by stage; nothing for layers of other stages.
    """

    def __init__(self, whole: KVCache, stages: tuple[tuple[Memory, ...], ...]) -> None:
        empty = torch.zeros(whole.batch, 0, dtype=torch.long, device=whole.slots.document.device)
        self.memories = stages
        self.stages: list[Held] = [Held(whole, empty)]

    @property
    def whole(self) -> KVCache:
        """The first stage's, which reads all tokens."""
        return self.stages[0].cache

    @property
    def batch(self) -> int:
        """Rows."""
        return self.whole.batch

    @property
    def capacity(self) -> int:
        """Tokens a row can be given."""
        return self.whole.capacity

    @property
    def length(self) -> int:
        """Tokens a row has been given."""
        return self.whole.length

    @property
    def free(self) -> int | None:
        """Tokens that can still be read."""
        return self.whole.free

    @property
    def table(self) -> TokenTable:
        """Table of all tokens given, the dropped ones included."""
        return self.whole.table

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values of all stages that have read something, in bytes, filled or not."""
        return sum(held.cache.num_bytes for held in self.stages)

    def mask_for(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """What to hand to the trunk as ``mask`` with these tokens; see ``KVCache.mask_for``."""
        return self.whole.mask_for(table, rule, lowered)

    def note_first(self, numbers: Int[Tensor, "B L"]) -> None:
        """Notes which tokens the first stage has read, when its cache has them."""
        cache, before = self.stages[0]
        self.stages[0] = Held(cache, torch.cat([before, numbers], dim=1))

    def append(self, stage: int, table: TokenTable, numbers: Int[Tensor, "B M"], num_dropped: int) -> Held:
        """Notes the tokens that a later stage is about to read; gives back all that it has read."""
        if stage == len(self.stages):
            self.stages.append(self._later_stage(stage, num_dropped))
        cache, before = self.stages[stage]
        cache.append(table)
        self.stages[stage] = Held(cache, torch.cat([before, numbers], dim=1))
        return self.stages[stage]

    def rows(self, index: Int[Tensor, " R"]) -> "PrunedCache":
        """A cache of the chosen rows, as copies."""
        chosen_rows = copy(self)
        chosen_rows.stages = [Held(held.cache.rows(index), held.numbers[index]) for held in self.stages]
        return chosen_rows

    def _later_stage(self, stage: int, num_dropped: int) -> Held:
        like, capacity = self.whole.keys[0], self.capacity - num_dropped
        cache = KVCache(layers=self.memories[stage], batch=self.batch, capacity=capacity, dtype=like.dtype, device=like.device)
        return Held(cache, self.stages[0].numbers[:, :0])
