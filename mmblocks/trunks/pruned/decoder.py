"""A decoder that drops visual tokens between its layers: later layers read, and remember, shorter rows.

Shapes: B rows, L new tokens, M of them that are left, S tokens a stage has read in all, D width.
"""

from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.flop_count import count_flops
from mmblocks.layers.reduction.token_importance import asking_tokens, attention_received, chosen, keep_most, last_tokens, prunable
from mmblocks.sequence.masks import Mask, MaskRule, visible
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache, Memory
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.layer import DecoderLayer
from mmblocks.trunks.parts.attention import SelfAttention
from mmblocks.trunks.parts.modulation import TokenConditions, read_conditions
from mmblocks.trunks.parts.part import memory_of, prepare
from mmblocks.trunks.pruned.cache import NOWHERE, PrunedCache
from mmblocks.trunks.pruned.rows import Row, stage_mask


class Stage(NamedTuple):
    """Layers ``first:stop``, and the share of a row's visual tokens that they read."""

    first: int
    stop: int
    share: float


class FlopsSaved(NamedTuple):
    """Floating-point operations of one forward pass, as ``layers.flop_count`` has them."""

    full: int
    pruned: int

    @property
    def share(self) -> float:
        """The part that is saved, 0 to 1."""
        return 1 - self.pruned / self.full


class PrunedDecoder(Block):
    """A ``Decoder`` that drops the visual tokens to which least attention is paid, before the layers that are named.

    The tokens are dropped from the row, not masked: later layers compute less, and their cache holds less. All that is left
    keeps its positions, and attends to those of its tokens that are left. Never dropped are text, noised copies and tokens after
    which a head is supervised, so that losses stay where they are. Rows that are read one token at a time, as in
    decoding, are not pruned.

    Args:
        trunk: whose layers are run; its weights are untouched.
        pruning: pairs of a layer and a share: before that layer, so many of a row's visual tokens (of those that it had
            in front of the first layer, rounded down) are left. Layers rise and shares fall.
        importance: whose attention counts, with the queries and keys of the layer that follows. "instruction": that of the last
            token of each document, or while training of the first that is asked (VScan, FastV). "visual": that of
            the visual tokens themselves, so that no text is needed (VisionDrop, without its merging).

    Raises:
        TypeError: a trunk that is no ``Decoder`` with plain attention.
        ValueError: layers that do not rise or are not there, shares that do not fall, or another ``importance``.

    Source: VScan (arXiv 2505.22654), VisionDrop (arXiv 2506.22283; Ruixxxx/VisionDrop), FastV (arXiv 2403.06764).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.sequence import Modality
        >>> from mmblocks.trunks import PrunedDecoder
        >>> trunk = PrunedDecoder(trunk=Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48), pruning=((1, 0.25),))
        >>> table, kept = TokenTable.text(1, 10), []
        >>> table.modality[:, 1:9], table.span[:, 1:9] = Modality.VISION, 0  # layer 1 reads a quarter of these 8
        >>> hidden = trunk(torch.randn(1, 10, 32), table, kept=kept)
        >>> kept[0].shape[1]
        4
    """

    def __init__(
        self,
        *,
        trunk: Block,
        pruning: tuple[tuple[int, float], ...],
        importance: Literal["instruction", "visual"] = "instruction",
    ) -> None:
        super().__init__()
        if not isinstance(trunk, Decoder) or trunk.experts or not all(map(_is_plain, trunk.layers)):
            raise TypeError(f"trunk is a {type(trunk).__name__}; accepted: a Decoder with plain attention")
        if importance not in ("instruction", "visual"):
            raise ValueError(f"importance is {importance!r}; accepted: 'instruction', 'visual'")
        self.trunk: Decoder = trunk
        self.importance = importance
        self.stages = _stages(pruning, len(trunk.layers))

    @property
    def dim(self) -> int:
        """D."""
        return self.trunk.dim

    @property
    def num_layers(self) -> int:
        """Layers."""
        return self.trunk.num_layers

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: PrunedCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        kept: list[Int[Tensor, "B _"]] | None = None,
        hooks: TrunkHooks | None = None,
        conditions: Conditions | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm; zeros at tokens that were dropped. Those of padding mean nothing.

        Args:
            embeds: the tokens.
            table: the tokens' metadata.
            cache: what was read before; the tokens are added to it.
            mask: a form found beforehand, a user's own rule, or None for the table's rule.
            kept: a list to which the places (B, M) that each later stage reads are appended, -1 at padding.
            hooks: functions that read or change states, attention weights and heads on the way: of the tokens that a layer reads,
                which are those in ``kept``. What is dropped before a layer is decided before its hook.
            conditions: as for ``Decoder``; those of dropped tokens go with them.

        Raises:
            ValueError: shapes that do not fit each other, a full cache, or hooks of layers that are not there.
        """
        trunk = self.trunk
        batch, length = table.shape
        first = 0 if cache is None else cache.length
        places = torch.arange(length, device=embeds.device).expand(batch, -1)
        context = trunk.context(
            embeds, table, None if cache is None else cache.whole, mask=mask, hooks=hooks, conditions=conditions
        )
        if cache is not None:
            cache.note_first(first + places)
        for layer in trunk.layers:
            prepare(layer, context)
        row = Row(trunk.scaled(embeds), table, context.angles, places, conditions and conditions.of_each(length))
        counts = prunable(table).sum(dim=1)

        row = self._through(row, self.stages[0], context)
        for number, stage in enumerate(self.stages[1:], start=1):
            row = self._pruned(row, stage, counts, mask, context) if length > 1 else row
            numbers = torch.where(row.places == NOWHERE, NOWHERE, first + row.places)
            held = None if cache is None else cache.append(number, row.table, numbers, length - numbers.shape[1])
            read = (row.table, numbers) if held is None else (held.cache.table, held.numbers)
            lowered = stage_mask(mask, row, *read, num_old=first, num_new=length)
            stage_context = ForwardContext(
                row.table, read[0], lowered, cache=held and held.cache, hooks=hooks, conditions=self._told(row)
            )
            stage_context.angles = row.angles
            row = self._through(row, stage, stage_context)
            if kept is not None:
                kept.append(row.places)
        x = trunk.norm(context.hooks.state(len(trunk.layers), row.x)) * (row.places != NOWHERE)[..., None]
        if len(self.stages) == 1 or length == 1:
            return x
        index = row.places.clamp(min=0)[..., None].expand_as(x)
        return torch.zeros_like(embeds, dtype=x.dtype).scatter_add(1, index, x)

    def new_cache(self, batch: int, capacity: int) -> PrunedCache:
        """An empty cache for ``batch`` rows that are given at most ``capacity`` tokens."""
        memories = [memory_of(layer) for layer in self.trunk.layers]
        stages = tuple(
            tuple(memory if stage.first <= layer < stage.stop else Memory() for layer, memory in enumerate(memories))
            for stage in self.stages
        )
        like = self.trunk.like
        whole = KVCache(layers=stages[0], batch=batch, capacity=capacity, dtype=like.dtype, device=like.device)
        return PrunedCache(whole, stages)

    @torch.no_grad()
    def flops_saved(self, embeds: Float[Tensor, "B L D"], table: TokenTable, mask: Mask | None = None) -> FlopsSaved:
        """Runs these tokens through the trunk with and without pruning, and counts."""
        full, pruned = (count_flops(partial(run, embeds, table, mask=mask)) for run in (self.trunk, self))
        return FlopsSaved(full, pruned)

    def _through(self, row: Row, stage: Stage, context: ForwardContext) -> Row:
        """The layers of one stage."""
        layers = list(enumerate(self.trunk.layers))[stage.first : stage.stop]
        return row._replace(x=self.trunk.run(row.x, context, layers))

    def _pruned(
        self, row: Row, stage: Stage, counts: Int[Tensor, " B"], mask: Mask | MaskRule | None, context: ForwardContext
    ) -> Row:
        """The row without the visual tokens that matter least to the stage's first layer, and without padding between."""
        candidates = prunable(row.table)
        if not counts.any():
            return row
        layer = cast(DecoderLayer, self.trunk.layers[stage.first])  # as _is_plain found
        importance = self._importance(row, layer, mask if callable(mask) else visible, context)
        most = (counts.double() * stage.share).long()
        return row.at(*_packed(keep_most(importance, candidates, most) & ~row.table.is_padding, row.table))

    @torch.no_grad()
    def _importance(self, row: Row, layer: DecoderLayer, rule: MaskRule, context: ForwardContext) -> Float[Tensor, "B M"]:
        """The attention of the layer to come that ends at each token, from the queries that count."""
        attention = cast(SelfAttention, layer.attention)
        normed = layer.attention_norm(row.x)
        if layer.modulation is not None:
            normed = layer.modulation(self._told(row))[0].read(normed)
        normed = row._replace(x=normed)
        index, real = chosen(self._queries(row.table))
        asking = normed.at(index, real)
        query = attention.turned(attention.query, attention.query_norm, asking.x, context, asking.angles)
        key = attention.turned(attention.key, attention.key_norm, normed.x, context, normed.angles)
        return attention_received(query, key, rule(asking.table, row.table), real)

    def _told(self, row: Row) -> TokenConditions | None:
        """What layers are told of the tokens that are left."""
        if row.conditions is None:
            return None
        return read_conditions(row.conditions, row.table.shape, self.trunk.condition_dim, None, self.trunk.modulation)

    def _queries(self, table: TokenTable) -> Bool[Tensor, "B M"]:
        if self.importance == "visual":
            return prunable(table)
        if not self.training:
            return last_tokens(table)
        asking = asking_tokens(table)
        return torch.where(asking.any(dim=1, keepdim=True), asking, last_tokens(table))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer begins with a norm and with attention that reads all tokens."""
    if not isinstance(layer, DecoderLayer) or layer.norm_place == "after":
        return False
    return isinstance(layer.attention, SelfAttention) and layer.attention.window is None


def _stages(pruning: tuple[tuple[int, float], ...], num_layers: int) -> tuple[Stage, ...]:
    """The layers between the points where tokens are dropped."""
    layers, shares = [layer for layer, _ in pruning], [float(share) for _, share in pruning]
    rising = all(before < after for before, after in pairwise([0, *layers, num_layers]))
    falling = all(0 <= after <= before for before, after in pairwise([1.0, *shares]))
    if not (rising and falling):
        raise ValueError(
            f"pruning is {pruning}; accepted: pairs of a layer, rising from 1 to {num_layers - 1}, and a share, falling from 1 to 0"
        )
    edges = [0, *layers, num_layers]
    return tuple(Stage(first, stop, share) for first, stop, share in zip(edges[:-1], edges[1:], [1.0, *shares], strict=True))


def _packed(keep: Bool[Tensor, "B L"], table: TokenTable) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Where the tokens stand that stay, and which of those are real; rows that end together still do so afterwards."""
    if bool(table.is_padding[:, -1].any()):
        return chosen(keep)
    index, real = chosen(keep.flip(1))
    return torch.where(real, keep.shape[1] - 1 - index, 0).flip(1), real.flip(1)
