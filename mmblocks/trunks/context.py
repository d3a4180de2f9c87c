"""What all layers of a trunk share in one forward pass: the tokens' metadata, the mask, the cache, and what is computed once.

Shapes: B batch, L new tokens, T all tokens of a row, N = B * L tokens sorted by expert, D width.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mmblocks.layers.attention.attend import Prepared, prepare
from mmblocks.ops.routed_linear import RowGroups
from mmblocks.sequence.masks import Causal, Dense, Intervals, Mask, densify
from mmblocks.sequence.past import Past
from mmblocks.sequence.positions import PositionScheme, RotaryTable, sequential
from mmblocks.sequence.tokens import TokenTable
from mmblocks.sequence.windows import clean_places, in_reading_order, within_window
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.parts.modulation import TokenConditions

T = TypeVar("T")


class ByExpert(nn.Module):
    """A module that is called with rows (N, ...) sorted by expert and with their ``RowGroups``."""


class ForwardContext:
    """One forward pass, as its layers see it.

    Where a trunk has weights by expert, its layers read the tokens as rows (N, D) sorted by expert, so that they are sorted once;
    otherwise as (B, L, D). ``in_order`` and ``as_rows`` lead from one form to the other.

    Attributes:
        table: the new tokens' metadata.
        mask: which of them the new tokens attend to.
        cache: what was read before, or None.
        hooks: functions that observe or change values on the way.
        groups: the new tokens sorted by expert, or None where no weights differ by expert.
        positions: a scheme of the trunk's own, or None.
        total_length: tokens that rows will have in the end, or None for those read so far.
        images: (B, M, Q, C) what cross-attention reads, or None.
        conditions: what the new tokens are conditioned on, in the layers' order of tokens, or None.
        routers: probabilities of the routers, (B, L, E), by layer, as far as layers have run.
        angles: rotary angles of the new tokens, by what they were computed for.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> trunk, embeds = Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48), torch.randn(1, 5, 32)
        >>> context = trunk.context(embeds, TokenTable.text(1, 5))
        >>> context.lengths
        (5, 5)
        >>> halfway = trunk.run(embeds, context, [(0, trunk.layers[0])])
        >>> tuple(halfway.shape)
        (1, 5, 32)
    """

    def __init__(
        self,
        table: TokenTable,
        keys: TokenTable | Past,
        mask: Mask,
        *,
        cache: KVCache | None = None,
        hooks: TrunkHooks | None = None,
        groups: RowGroups | None = None,
        positions: PositionScheme | None = None,
        total_length: int | Int[Tensor, " B"] | None = None,
        images: Float[Tensor, "B M Q C"] | None = None,
        conditions: TokenConditions | None = None,
    ) -> None:
        self.table, self.cache, self.groups = table, cache, groups
        self._keys = keys
        self.hooks = TrunkHooks() if hooks is None else hooks
        self.positions, self.total_length, self.images, self.conditions = positions, total_length, images, conditions
        # Attention weights are computed pair by pair where a hook reads them.
        self.mask = Dense(densify(mask, *self.lengths, table.document.device)) if self.hooks.attention else mask
        self.routers: dict[int, Tensor] = {}
        self.angles: dict[str, RotaryTable] = {}
        self._shared: dict[str, Any] = {}

    @property
    def keys(self) -> TokenTable:
        """The metadata of all tokens of the rows, the new ones last."""
        return self._keys.keys if isinstance(self._keys, Past) else self._keys

    @property
    def lengths(self) -> tuple[int, int]:
        """L and T."""
        return self.table.shape[1], self._keys.length if isinstance(self._keys, Past) else self._keys.shape[1]

    def share(self, name: str, compute: Callable[[], T]) -> T:
        """A value that several layers need: computed by the first that shares it, in ``prepare``, and kept for this pass."""
        if name not in self._shared:
            self._shared[name] = compute()
        found: T = self._shared[name]
        return found

    def share_angles(self, name: str, compute: Callable[[], RotaryTable]) -> None:
        """Rotary angles, which several layers need; read from ``angles``."""
        if name not in self.angles:
            self.angles[name] = compute()

    def share_mask(self, window: int | None = None, *, capped: bool = False, dropped: bool = False) -> None:
        """Lowers the mask once for all layers of this window, with or without a cap on scores; see ``attention_mask``."""
        self.share(f"mask {window} {capped} {dropped}", lambda: self._prepared(window, capped, dropped))

    def attention_mask(self, layer: int, window: int | None = None, *, capped: bool = False, dropped: bool = False) -> Prepared:
        """The mask as layer ``layer`` computes attention under it, with the layer's hooks.

        Args:
            layer: index.
            window: tokens that attention reaches back, the token itself included; None for all. ``share_mask`` was called for it.
            capped: whether scores have a soft cap.
            dropped: whether weights have dropout, which is not computed in every form.
        """
        return self.hooks.observed(layer, self._shared[f"mask {window} {capped} {dropped}"])

    def _prepared(self, window: int | None, capped: bool, dropped: bool) -> Prepared:
        length, total = self.lengths
        mask, device = self.mask, self.table.document.device
        if window is not None and total > window:
            mask = within_window(mask, window, self.table, *self._places())
        elif capped and isinstance(mask, Causal) and device.type == "cuda" and length == total > 1:
            # As intervals flex_attention takes it, which caps scores without holding all of them.
            mask = within_window(mask, total, self.table, *self._places())
        if dropped and isinstance(mask, Intervals):
            mask = Dense(densify(mask, length, total, device))
        return prepare(mask, length, total, device)

    def _places(self) -> tuple[Tensor, Tensor, TokenTable]:
        """Which token of its row each query and each key is, and the keys' table, in the order in which the cache gives keys."""
        length, total = self.lengths
        if isinstance(self.mask, Dense) and (self.cache is None or type(self.cache) is KVCache):
            places = clean_places(self.keys)  # noised copies among them take no place from the tokens after them
            return places[:, total - length :], places, self.keys
        if self.cache is None:
            return *in_reading_order(length, total, self.table.document.device), self.keys
        return self.cache.places(self.table.shape[1])

    def position(self, scheme: PositionScheme = sequential) -> Tensor:
        """Positions of all tokens, by the trunk's own scheme or else by this one: (B, T), or (B, T, axes)."""
        scheme = self.positions or scheme
        return self._keys.positions(scheme) if isinstance(self._keys, Past) else scheme(self._keys)

    def apply(self, module: nn.Module, x: Shaped[Tensor, "*N _"]) -> Shaped[Tensor, "*N _"]:
        """A module on tokens; with their groups where it has weights by expert."""
        found: Tensor = module(x, self.groups) if isinstance(module, ByExpert) else module(x)
        return found

    def in_order(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "B L *E"]:
        """Tokens in reading order, whatever the order in which layers have them."""
        return x if self.groups is None else self.groups.restore(x).unflatten(0, self.table.shape)

    def as_rows(self, x: Shaped[Tensor, "B L *E"]) -> Shaped[Tensor, "..."]:
        """The way back."""
        return x if self.groups is None else self.groups.sort(x.flatten(0, 1))

    def shown(self, layer: int, x: Tensor) -> Tensor:
        """What layer ``layer`` reads, after its hook has seen it in reading order."""
        if layer not in self.hooks.hidden:
            return x
        if self.groups is None:
            return self.hooks.state(layer, x)
        return self.as_rows(self.hooks.state(layer, self.in_order(x)))

    def show_routers(self) -> None:
        """Hands router probabilities to their hooks, when all layers have run: one may run twice for gradients."""
        for layer, hook in self.hooks.routers.items():
            if layer in self.routers:
                hook(self.routers.pop(layer))
