"""Low-rank additions to a decoder's linear maps: for some modalities' tokens only, or mixed by a learned gate.

The maps themselves stand in ``lora_maps``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import nn

from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.routed.lora_maps import GatedLoRA, ModalityLoRA
from mmblocks.trunks.routed.routed_decoder import RoutedDecoder, RouteRule, unfilled, without_expert

MAPS = ("query", "key", "value", "output", "gate", "up", "down")
"""A layer's linear maps."""


class _LoRADecoder(RoutedDecoder):
    """A decoder whose layers' linear maps have low-rank additions."""

    def _add(self, make: Callable[[nn.Module, int, int], nn.Module], rank: int, maps: Sequence[str]) -> None:
        if rank < 1:
            raise ValueError(f"rank is {rank}; accepted: 1 or more")
        if not maps or not set(maps) <= set(MAPS):
            raise ValueError(f"maps is {tuple(maps)}; accepted: some of {MAPS}")
        layers: list[Any] = list(self.layers)
        for layer in layers:
            for part in (layer.attention, layer.mlp):
                for name in set(maps) & set(dict(part.named_children())):
                    base = getattr(part, name)
                    weight = next(base.parameters())
                    setattr(part, name, make(base, weight.shape[1], weight.shape[0]))

    @classmethod
    def _from_decoder(cls, decoder: Decoder, **options: Any) -> Self:
        """The decoder's weights, copied, and low-rank maps that add nothing yet."""
        trunk = unfilled(cls, decoder, **options)
        weights = decoder.state_dict()
        origin = {name: without_expert(name.replace(".base.", "."), trunk.experts) for name in trunk.state_dict()}
        copied = {name: weights[theirs].clone() for name, theirs in origin.items() if theirs in weights}
        trunk.load_state_dict(copied, strict=False, assign=True)
        like = decoder.norm.weight
        for added in [module for module in trunk.modules() if isinstance(module, ModalityLoRA | GatedLoRA)]:
            for child in (child for name, child in added.named_children() if name != "base"):
                child.to_empty(device=like.device).to(like.dtype)
            added.reset()
        return trunk.train(decoder.training)


class ModalityLoRADecoder(_LoRADecoder):
    """A decoder whose linear maps have low-rank additions for the tokens of some modalities only; all others pass as before.

    Args:
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, head_dim, norm_eps, rope_theta, rope_scaling, qk_norm, qkv_bias, dropout,
            positions: as for ``Decoder``.
        experts, route: as for ``RoutedDecoder``.
        adapted: which experts' tokens the additions act on.
        rank, alpha: of the additions, which count ``alpha / rank`` times.
        lora_dropout: on what they read, while training.
        maps: which linear maps of a layer have them, of ``MAPS``.

    Raises:
        ValueError: for sizes that do not go together, unknown experts or maps.

    Source: InternLM-XComposer2 (arXiv 2401.16420), which has rank and alpha 256 on all maps.
    """

    layouts = ()

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        experts: Sequence[str] = ("text", "vision"),
        route: RouteRule | None = None,
        adapted: Sequence[str] = ("vision",),
        rank: int = 256,
        alpha: float = 256.0,
        lora_dropout: float = 0.0,
        maps: Sequence[str] = MAPS,
    ) -> None:
        super().__init__(
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            dropout=dropout,
            positions=positions,
            experts=experts,
            routed=(),
            route=route,
        )
        if not adapted or not set(adapted) <= set(experts):
            raise ValueError(f"adapted is {tuple(adapted)}; accepted: some of the experts, {tuple(experts)}")
        options: dict[str, Any] = {
            "experts": experts,
            "adapted": adapted,
            "rank": rank,
            "alpha": alpha,
            "dropout": lora_dropout,
        }
        self._add(lambda base, width, out: ModalityLoRA(base, width, out, **options), rank, maps)

    @classmethod
    def from_decoder(  # type: ignore[override]
        cls,
        decoder: Decoder,
        *,
        experts: Sequence[str] = ("text", "vision"),
        route: RouteRule | None = None,
        adapted: Sequence[str] = ("vision",),
        rank: int = 256,
        alpha: float = 256.0,
        lora_dropout: float = 0.0,
        maps: Sequence[str] = MAPS,
    ) -> Self:
        """A trunk that computes what ``decoder`` does until its additions have learned something. Its weights are copies.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
        """
        return cls._from_decoder(
            decoder,
            experts=experts,
            route=route,
            adapted=adapted,
            rank=rank,
            alpha=alpha,
            lora_dropout=lora_dropout,
            maps=maps,
        )


class SlideLoRADecoder(_LoRADecoder):
    """A decoder whose linear maps have a low-rank addition for all tokens, and several of which a learned gate takes a share each.

    The experts are meant to learn what the modalities need, and the shared addition what they have in common.

    Args:
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, head_dim, norm_eps, rope_theta, rope_scaling, qk_norm, qkv_bias, dropout,
            positions: as for ``Decoder``.
        num_experts: additions that the gate mixes, one for text and one for images as published.
        rank, alpha: of each addition, which counts ``alpha / rank`` times.
        maps: which linear maps of a layer have them, of ``MAPS``.

    Raises:
        ValueError: for sizes that do not go together, or unknown maps.

    Source: TextHarmony (arXiv 2407.16364). The gate is a softmax for each token, from what the map reads.
    """

    layouts = ()

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        num_experts: int = 2,
        rank: int = 64,
        alpha: float = 64.0,
        maps: Sequence[str] = MAPS,
    ) -> None:
        super().__init__(
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            dropout=dropout,
            positions=positions,
            experts=("text",),
            routed=(),
        )
        if num_experts < 1:
            raise ValueError(f"num_experts is {num_experts}; accepted: 1 or more")
        options: dict[str, Any] = {"num_experts": num_experts, "rank": rank, "alpha": alpha}
        self._add(lambda base, width, out: GatedLoRA(base, width, out, **options), rank, maps)

    @classmethod
    def from_decoder(  # type: ignore[override]
        cls, decoder: Decoder, *, num_experts: int = 2, rank: int = 64, alpha: float = 64.0, maps: Sequence[str] = MAPS
    ) -> Self:
        """A trunk that computes what ``decoder`` does until its additions have learned something. Its weights are copies.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
        """
        return cls._from_decoder(decoder, num_experts=num_experts, rank=rank, alpha=alpha, maps=maps)
