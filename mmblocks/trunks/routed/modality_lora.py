"""Decoders with low-rank additions to their linear maps: for some modalities' tokens only, or mixed by a learned gate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.llama import LlamaArguments, llama_layer, with_attention
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.linears import MAPS, GatedLowRank, Linear, LowRank
from mmblocks.trunks.parts.low_rank import GatedLoRA, ModalityLoRA
from mmblocks.trunks.routed.routed_decoder import routed_layer
from mmblocks.trunks.routed.unfilled import unfilled, without_expert
from mmblocks.trunks.routing import RouteRule


def _with_maps(llama: LlamaArguments, first_expert: str, linear: Linear) -> Layer:
    """The layer of the shorthand, whose maps are named after the first expert and have additions."""
    layer = with_attention(routed_layer(llama_layer(**llama), (first_expert,)), linear=linear)
    return replace(layer, feed_forward=GatedMLP(hidden_dim=llama["mlp_dim"], linear=linear))


def _from_decoder(cls: type[Any], decoder: Decoder, options: Mapping[str, object], experts: Sequence[str]) -> Any:
    """The decoder's weights, copied, and low-rank maps that add nothing yet."""
    trunk = unfilled(cls, decoder, **options)
    weights = decoder.state_dict()
    origin = {name: without_expert(name.replace(".base.", "."), experts) for name in trunk.state_dict()}
    copied = {name: weights[theirs].clone() for name, theirs in origin.items() if theirs in weights}
    trunk.load_state_dict(copied, strict=False, assign=True)
    like = decoder.like
    for added in [module for module in trunk.modules() if isinstance(module, ModalityLoRA | GatedLoRA)]:
        for child in (child for name, child in added.named_children() if name != "base"):
            child.to_empty(device=like.device).to(like.dtype)
        added.reset()
    return trunk.train(decoder.training)


class ModalityLoRADecoder(Decoder):
    """A decoder whose linear maps have low-rank additions for the tokens of some modalities only; all others pass as before.

    Args:
        dim, num_layers, dropout, positions: as for ``Decoder``.
        experts, route: as for ``RoutedDecoder``.
        adapted: which experts' tokens the additions act on.
        rank, alpha: of the additions, which count ``alpha / rank`` times.
        lora_dropout: on what they read, while training.
        maps: which linear maps of a layer have them, of ``MAPS``.
        llama: the arguments of ``llama_layer``.

    Raises:
        ValueError: for sizes that do not go together, unknown experts or maps.

    Source: InternLM-XComposer2 (arXiv 2401.16420), which has rank and alpha 256 on all maps.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import ModalityLoRADecoder
        >>> plain = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> trunk = ModalityLoRADecoder.from_decoder(plain, rank=4, alpha=8.0)  # adds nothing until it has learned
        >>> embeds, table = torch.randn(1, 5, 32), TokenTable.text(1, 5)
        >>> torch.equal(trunk(embeds, table), plain(embeds, table))
        True
    """

    layouts = ()

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        experts: Sequence[str] = ("text", "vision"),
        adapted: Sequence[str] = ("vision",),
        rank: int = 256,
        alpha: float = 256.0,
        lora_dropout: float = 0.0,
        maps: Sequence[str] = MAPS,
        route: RouteRule | None = None,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        linear = LowRank(
            experts=tuple(experts[:1]),
            names=tuple(experts),
            adapted=tuple(adapted),
            rank=rank,
            alpha=alpha,
            dropout=lora_dropout,
            maps=tuple(maps),
        )
        layer = _with_maps(llama, experts[0], linear)
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout, route=route, positions=positions)

    @classmethod
    def from_decoder(cls, decoder: Decoder, *, experts: Sequence[str] = ("text", "vision"), **options: object) -> Self:
        """A trunk that computes what ``decoder`` does until its additions have learned something. Its weights are copies.

        Args:
            decoder: a plain ``Decoder``; it is left as it is.
            experts: names of the sets of weights.
            options: this class's further arguments but those of ``llama_layer``.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
            ValueError: a decoder with ``layers`` of its own.
        """
        made: Self = _from_decoder(cls, decoder, {"experts": experts, **options}, experts)
        return made


class SlideLoRADecoder(Decoder):
    """A decoder whose linear maps have a low-rank addition for all tokens, and several of which a learned gate takes a share each.

    The experts are meant to learn what the modalities need, and the shared addition what they have in common.

    Args:
        dim, num_layers, dropout, positions: as for ``Decoder``.
        num_experts: additions that the gate mixes, one for text and one for images as published.
        rank, alpha: of each addition, which counts ``alpha / rank`` times.
        maps: which linear maps of a layer have them, of ``MAPS``.
        llama: the arguments of ``llama_layer``.

    Raises:
        ValueError: for sizes that do not go together, or unknown maps.

    Source: TextHarmony (arXiv 2407.16364). The gate is a softmax for each token, from what the map reads.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import SlideLoRADecoder
        >>> plain = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> trunk = SlideLoRADecoder.from_decoder(plain, num_experts=2, rank=4, maps=("query", "value"))
        >>> embeds, table = torch.randn(1, 5, 32), TokenTable.text(1, 5)
        >>> torch.allclose(trunk(embeds, table), plain(embeds, table))
        True
    """

    layouts = ()

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_experts: int = 2,
        rank: int = 64,
        alpha: float = 64.0,
        maps: Sequence[str] = MAPS,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        linear = GatedLowRank(experts=("text",), num_experts=num_experts, rank=rank, alpha=alpha, maps=tuple(maps))
        layer = _with_maps(llama, "text", linear)
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout, positions=positions)

    @classmethod
    def from_decoder(cls, decoder: Decoder, **options: object) -> Self:
        """A trunk that computes what ``decoder`` does until its additions have learned something; see ``ModalityLoRADecoder``."""
        made: Self = _from_decoder(cls, decoder, options, ("text",))
        return made
