"""One layer of a trunk: a token mixer and a feed-forward part, each with its norms, added to what comes in.

Shapes: N tokens (on one or more axes), D width.
"""

from collections.abc import Iterable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.modulation import NO_MOVES, AdaLN
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.part import (
    Part,
    Site,
    TrunkPart,
    check_part,
    condition_dim_of,
    has_static_step,
    memory_of,
    prepare,
    reads_rows,
)

NormPlace = Literal["before", "after", "both"]


class Layer(Part):
    """A layer.

    Args:
        mixer: what lets tokens read each other: ``Attention``, or a part of one's own.
        feed_forward: what is computed token by token: ``GatedMLP``, ``MLP``, ``MixtureOfExperts``, or a part of one's own.
        norm: every norm of the layer.
        norm_place: "before" mixer and feed-forward part (Llama), "after" them (Chameleon 34B, OLMo 2), or "both" (Gemma 2).
        parallel: whether both read the same input, under one norm, and are added together (Cohere, Phi).
        residual_scale: what both are multiplied by before they are added (Granite, MiniCPM).
        modulation: how conditions of tokens change what both read and give (DiT); None for not at all.

    Examples:
        >>> from mmblocks import Decoder
        >>> from mmblocks.trunks import MLP, Attention, Layer, Norm
        >>> layer = Layer(
        ...     mixer=Attention(num_heads=4, qkv_bias=True, output_bias=True),
        ...     feed_forward=MLP(hidden_dim=64),
        ...     norm=Norm(kind="layer", bias=True),
        ...     parallel=True,
        ... )
        >>> trunk = Decoder(dim=32, num_layers=1, layers=layer)
        >>> trunk.layers[0].mlp_norm is None  # parallel parts share one norm
        True
    """

    mixer: Part
    feed_forward: Part
    norm: Norm = Norm()
    norm_place: NormPlace = "before"
    parallel: bool = False
    residual_scale: float = 1.0
    modulation: AdaLN | None = None

    def check(self) -> None:
        """Refuses what is no part, and places of norms that do not go together."""
        check_part("mixer", self.mixer)
        check_part("feed_forward", self.feed_forward)
        if self.norm_place not in ("before", "after", "both"):
            raise ValueError(f"norm_place is {self.norm_place!r}; accepted: 'before', 'after', 'both'")
        if self.parallel and self.norm_place != "before":
            raise ValueError(f"norm_place is {self.norm_place!r}; accepted with parallel: 'before'")

    @property
    def branches(self) -> int:
        """How many branches a modulation has numbers for."""
        return 1 if self.parallel else 2

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return DecoderLayer(self, site)


class DecoderLayer(TrunkPart):
    """What ``Layer`` describes.

    Args:
        parts: the description.
        site: where it is built.

    Attributes:
        attention: the mixer, of whatever kind, under the name that checkpoints have for it.
        mlp: the feed-forward part, likewise.
        dropout: on both branches, while training.
        modulation: of both branches, or None.
    """

    def __init__(self, parts: Layer, site: Site) -> None:
        super().__init__()
        self.norm_place, self.parallel, self.residual_scale = parts.norm_place, parts.parallel, parts.residual_scale
        self.attention_norm = parts.norm.build(site.dim)
        self.attention = parts.mixer.build(site)
        self.mlp_norm = None if parts.parallel else parts.norm.build(site.dim)
        self.mlp = parts.feed_forward.build(site)
        both = parts.norm_place == "both"
        self.attention_post_norm = parts.norm.build(site.dim) if both else None
        self.mlp_post_norm = parts.norm.build(site.dim) if both else None
        self.dropout = site.dropout
        modulation = parts.modulation
        self.modulation = None if modulation is None else modulation.build(site.dim, parts.branches)
        self.condition_dim = condition_dim_of(self.attention, self.mlp, self.modulation)
        self._sorted = [reads_rows(self.attention), reads_rows(self.mlp)]
        self.static_step = has_static_step(self.attention) and has_static_step(self.mlp)
        self.memory = memory_of(self.attention)

    def prepare(self, context: ForwardContext) -> None:
        """What mixer and feed-forward part share with those of other layers."""
        prepare(self.attention, context)
        prepare(self.mlp, context)

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """One layer; ``layer`` is its index."""
        mixing, feeding = NO_MOVES if self.modulation is None else self.modulation(context.conditions)
        if self.norm_place == "after":
            mixed = self._mixed(mixing.read(x), context, layer)
            x = self._added(x, mixing.gated(context.apply(self.attention_norm, mixed)))
            made = self._fed_forward(feeding.read(x), context, layer)
            return self._added(x, feeding.gated(self._normed(self.mlp_norm, made, context)))
        normed = mixing.read(context.apply(self.attention_norm, x))
        mixed = self._mixed(normed, context, layer)
        if self.mlp_norm is None:
            return self._added(x, mixing.gated(mixed + self._fed_forward(normed, context, layer)))
        x = self._added(x, mixing.gated(self._normed(self.attention_post_norm, mixed, context)))
        made = self._fed_forward(feeding.read(context.apply(self.mlp_norm, x)), context, layer)
        return self._added(x, feeding.gated(self._normed(self.mlp_post_norm, made, context)))

    def _normed(self, norm: nn.Module | None, x: Tensor, context: ForwardContext) -> Tensor:
        return x if norm is None else context.apply(norm, x)

    def _added(self, x: Tensor, branch: Tensor) -> Tensor:
        branch = dropout(branch, self.dropout, self.training) if self.dropout else branch
        return x + (branch if self.residual_scale == 1 else branch * self.residual_scale)

    def _mixed(self, x: Tensor, context: ForwardContext, layer: int) -> Tensor:
        return self._part(self.attention, self._sorted[0], x, context, layer)

    def _fed_forward(self, x: Tensor, context: ForwardContext, layer: int) -> Tensor:
        return self._part(self.mlp, self._sorted[1], x, context, layer)

    def _part(self, part: nn.Module, reads_rows: bool, x: Tensor, context: ForwardContext, layer: int) -> Tensor:
        """A part's output; one that does not know rows sorted by expert is given them in reading order."""
        if reads_rows or context.groups is None:
            found: Tensor = part(x, context, layer)
            return found
        return context.as_rows(part(context.in_order(x), context, layer))


def shared_modulation(kinds: Iterable[Part], dim: int) -> nn.Module | None:
    """The map of conditions that the layers of a trunk share; None where each has its own.

    Raises:
        ValueError: layers that would need different maps.
    """
    modulated = [kind for kind in kinds if isinstance(kind, Layer) and kind.modulation is not None and kind.modulation.shared]
    maps = {(kind.modulation, kind.branches) for kind in modulated}
    if len(maps) > 1:
        raise ValueError("layers share maps of conditions that differ; accepted: one AdaLN(shared=True), all parallel or none")
    return next((modulation.build_map(dim, branches) for modulation, branches in maps if modulation is not None), None)
