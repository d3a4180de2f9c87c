"""The decoder trunk: a stack of layers that are put together from described parts.

Shapes: B batch, L new tokens, N tokens (on one or more axes), D width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.sequence.masks import Mask, MaskRule, find_mask
from mmblocks.sequence.past import Past
from mmblocks.sequence.positions import PositionScheme
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.context import ByExpert, ForwardContext
from mmblocks.trunks.decoder_layouts import DECODER_LAYOUTS
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.layer import Layer, shared_modulation
from mmblocks.trunks.llama import LlamaArguments, llama_layer
from mmblocks.trunks.parts.cross_attention import ImageReader, projected
from mmblocks.trunks.parts.modulation import read_conditions
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.part import Part, Site, condition_dim_of, has_static_step, memory_of, prepare
from mmblocks.trunks.routing import RouteRule, check_experts, experts_of, group_tokens

ONE_KIND = "layer"
"""The type of all layers where there is one."""


class Decoder(Block):
    """A stack of layers between embeddings and hidden states; with the shorthand's arguments a Llama.

    The mask follows the table's visibility rule. What a layer is made of is described, once for each kind of layer:

        Decoder(
            dim=2304,
            num_layers=26,
            layers={
                "local": Layer(mixer=Attention(num_heads=8, window=4096), feed_forward=GatedMLP(hidden_dim=9216)),
                "global": Layer(mixer=Attention(num_heads=8), feed_forward=MixtureOfExperts(hidden_dim=9216, num_experts=8)),
            },
            layer_types=("local", "global") * 13,
        )

    A part of one's own is a ``Part``, see there.

    Args:
        dim: D.
        num_layers: layers.
        layers: the layer, or the kinds of layers by name. In its place the arguments of ``llama_layer`` describe one kind:
            ``Decoder(dim=512, num_layers=8, num_heads=8, mlp_dim=2048)``.
        layer_types: the kind of each layer, of the names in ``layers``; may be left out where there is one kind.
        norm: the norm after the last layer; None for that of the first kind of layers.
        embed_scale: what embeddings are multiplied by, rounded to their dtype (Gemma, Granite). It multiplies those of images too.
        dropout: on the embeddings and on both branches of every layer, while training (Emu3 trains with 0.1).
        route: where parts have weights by expert: a rule of one's own from the token table to each token's expert, (B, L);
            ``routing.by_modality`` if None.
        positions: a scheme of one's own, from the token table to (B, L), or to (B, L, axes) for angles of several axes; what the
            angles say if None, which is ``sequence.positions.sequential`` for plain ones: it counts tokens inside each document,
            images included.

    Raises:
        ValueError: for sizes that do not go together, layer types without a description, or experts that differ between parts.
        TypeError: neither ``layers`` nor the arguments of ``llama_layer``, or both.

    Source: Llama (arXiv 2302.13971); Emu3 (baaivision/Emu3) and Emu3.5 (baaivision/Emu3.5).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> trunk = Decoder(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=64)
        >>> hidden = trunk(torch.randn(2, 5, 32), TokenTable.text(2, 5))
        >>> tuple(hidden.shape)
        (2, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = DECODER_LAYOUTS
    shorthand = staticmethod(llama_layer)
    shorthand_of = "layers"

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        layers: Part | Mapping[str, Part] | None = None,
        layer_types: Sequence[str] | None = None,
        norm: Norm | None = None,
        embed_scale: float = 1.0,
        dropout: float = 0.0,
        route: RouteRule | None = None,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        super().__init__()
        _check_numbers(num_layers, embed_scale, dropout)
        layers = llama_layer(**llama) if layers is None else layers
        kinds = _checked_kinds(layers)
        self.layer_types = _checked_types(kinds, layer_types, num_layers)
        self.dim, self.embed_scale, self.dropout = dim, embed_scale, dropout
        self.experts, self.route = experts_of(kinds.values()), route
        check_experts(self.experts, route)
        self.positions = positions
        self.checkpoint_activations = False
        self.layers = nn.ModuleList(
            kinds[kind].build(Site(dim, layer, num_layers, dropout)) for layer, kind in enumerate(self.layer_types)
        )
        self.modulation = shared_modulation(kinds.values(), dim)
        self.condition_dim = condition_dim_of(*self.layers)
        self.norm = (norm or _norm_of(kinds.values())).build(dim)

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        hooks: TrunkHooks | None = None,
        images: Float[Tensor, "B M Q C"] | None = None,
        total_length: int | Int[Tensor, " B"] | None = None,
        conditions: Conditions | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm.

        Args:
            embeds: the tokens.
            table: the tokens' metadata.
            cache: what was read before; the tokens are added to it.
            mask: a form found beforehand, a user's own rule, or None for the table's rule.
            hooks: functions that read or change states, attention weights and heads on the way.
            images: what cross-attention layers read, such as a ``PerceiverResampler`` makes of each image of a row.
            total_length: tokens that rows will have in the end, padding included, for angles that follow from it: of all rows or of
                each; those read so far if None.
            conditions: what layers with a modulation are told of tokens; without them nothing is modulated. ``of`` may have fewer
                columns, one for each of as many runs of equal length: (B, 1) where it is the same in a whole row.

        Raises:
            ValueError: shapes that do not fit each other, a full cache, hooks of layers that are not there, or conditions for
                layers that take none.
        """
        context = self.context(
            embeds, table, cache, mask=mask, hooks=hooks, images=images, total_length=total_length, conditions=conditions
        )
        x = self.scaled(embeds)
        x = context.hooks.state(len(self.layers), context.in_order(self.run(context.as_rows(x), context)))
        if not isinstance(self.norm, ByExpert):
            return self.norm(x)
        return context.in_order(context.apply(self.norm, context.as_rows(x)))

    def context(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        hooks: TrunkHooks | None = None,
        images: Float[Tensor, "B M Q C"] | None = None,
        total_length: int | Int[Tensor, " B"] | None = None,
        conditions: Conditions | None = None,
    ) -> ForwardContext:
        """What the layers share in a pass over these tokens, which are noted in the cache; arguments as of ``forward``."""
        if embeds.shape[:2] != table.shape or embeds.shape[2] != self.dim:
            found = f"embeds {tuple(embeds.shape)} and a table {table.shape}"
            raise ValueError(f"{found} do not fit; accepted: (B, L, {self.dim}) and (B, L)")
        if hooks is not None:
            hooks.check(len(self.layers))
        groups = group_tokens(table, self.experts, self.route)
        told = None
        if conditions is not None:
            told = read_conditions(conditions, table.shape, self.condition_dim, groups, self.modulation)
        keys = table if cache is None else cache.follow(table)
        if not isinstance(keys, Past):
            lowered = find_mask(mask, table, keys)
        else:
            lowered = keys.mask if mask is None else find_mask(mask, table, keys.keys)
        return ForwardContext(
            table,
            keys,
            lowered,
            cache=cache,
            hooks=hooks,
            groups=groups,
            positions=self.positions,
            total_length=total_length,
            images=images,
            conditions=told,
        )

    def run(
        self, x: Float[Tensor, "*N D"], context: ForwardContext, layers: Iterable[tuple[int, nn.Module]] | None = None
    ) -> Float[Tensor, "*N D"]:
        """Some layers, or all, one after the other, by index. Router probabilities are shown to their hooks afterwards."""
        chosen = list(enumerate(self.layers) if layers is None else layers)
        for _, layer in chosen:
            prepare(layer, context)
        for index, layer in chosen:
            x = context.shown(index, x)
            # Recomputing a layer would call its hooks again.
            if self.checkpoint_activations and self.training and context.cache is None and not context.hooks.observe(index):
                x = checkpoint(layer, x, context, index, use_reentrant=False)
            else:
                x = layer(x, context, index)
        context.show_routers()
        return x

    def scaled(self, embeds: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """What the first layer reads of the embeddings: scaled, and with dropout while training."""
        if self.embed_scale != 1:
            embeds = embeds * torch.full((), self.embed_scale, dtype=embeds.dtype, device=embeds.device)
        return dropout(embeds, self.dropout, self.training)

    def new_cache(self, batch: int, capacity: int, images: Float[Tensor, "B M Q C"] | None = None) -> KVCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens, in this trunk's dtype and on its device.

        Cross-attention layers read the ``images`` of the cache, and those of later calls.
        """
        memories = [memory_of(layer) for layer in self.layers]
        cache = KVCache(layers=memories, batch=batch, capacity=capacity, dtype=self.like.dtype, device=self.like.device)
        for index, layer in enumerate(self.layers):
            if images is not None and isinstance(layer, ImageReader):
                cache.images[index] = projected(layer.gated, images, batch)
        return cache

    @property
    def like(self) -> Tensor:
        """A parameter of the dtype and on the device of the stream between layers."""
        return next(self.norm.parameters(), next(self.parameters()))

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self.layers)

    @property
    def static_step(self) -> bool:
        """Whether a step of one token can be recorded as a CUDA graph."""
        return all(map(has_static_step, self.layers)) and len(self.experts) < 2


def _checked_kinds(layers: Part | Mapping[str, Part]) -> Mapping[str, Part]:
    """The kinds of layers by name."""
    kinds = layers if isinstance(layers, Mapping) else {ONE_KIND: layers}
    if not kinds:
        raise ValueError("layers is {}; accepted: a layer, or one or more kinds of layers by name")
    for kind in kinds.values():
        if not isinstance(kind, Part):
            raise TypeError(f"layers has {kind!r:.100}; accepted: a description such as Layer, or a dict of them by name")
    return kinds


def _check_numbers(num_layers: int, embed_scale: float, dropout: float) -> None:
    if num_layers < 0:
        raise ValueError(f"num_layers is {num_layers}; accepted: 0 or more")
    if not 0 < embed_scale < math.inf:
        raise ValueError(f"embed_scale is {embed_scale}; accepted: above 0, and finite")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; accepted: 0 or more, below 1")


def _checked_types(kinds: Mapping[str, Part], types: Sequence[str] | None, num_layers: int) -> tuple[str, ...]:
    """The kind of each layer."""
    if types is None and len(kinds) == 1:
        types = tuple(kinds) * num_layers
    if types is None or len(types) != num_layers or not set(types) <= set(kinds):
        raise ValueError(f"layer_types is {types}; accepted: {num_layers} of the names in layers, {', '.join(kinds)}")
    return tuple(types)


def _norm_of(kinds: Iterable[Part]) -> Norm:
    """What the norm after the last layer is where nothing is said: that of the layers, with weights for all tokens alike."""
    first = next((kind.norm for kind in kinds if isinstance(kind, Layer)), Norm())
    return replace(first, experts=())
