"""A decoder in which each modality has weights of its own under one attention.

EVEv2, LlamaFusion and other mixtures of transformers; with routed feed-forward layers alone Mono-InternVL and SynerGen-VL.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self, Unpack

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.llama import LlamaArguments, llama_layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.linears import Linear
from mmblocks.trunks.routed.eve2_layout import EVE2_LAYOUT
from mmblocks.trunks.routed.mono_internvl_layout import MONO_INTERNVL_LAYOUT
from mmblocks.trunks.routed.unfilled import unfilled, without_expert
from mmblocks.trunks.routing import RouteRule

PARTS = ("norms", "attention", "mlp")
"""What can be routed in a layer. The norms of heads go with the attention."""

LAST_NORM = "last_norm"
"""The norm of the trunk's output, which all experts share unless it is named too (BAGEL)."""


def routed_layer(layer: Layer, experts: Sequence[str], routed: Sequence[str] = PARTS) -> Layer:
    """A layer of attention and a gated MLP, with weights by expert.

    Args:
        layer: what it would be without.
        experts: names of the sets of weights. A part that is not routed has those of the first, for all tokens.
        routed: which parts differ by expert, of ``PARTS``; ``LAST_NORM`` is no layer's.

    Raises:
        ValueError: no experts, or unknown parts.
        TypeError: a layer of other parts.
    """
    if not experts:
        raise ValueError(f"experts is {tuple(experts)}; accepted: one or more different identifiers")
    if not set(routed) <= {*PARTS, LAST_NORM}:
        raise ValueError(f"routed is {tuple(routed)}; accepted: some of {(*PARTS, LAST_NORM)}")
    of = {part: tuple(experts) if part in routed else tuple(experts[:1]) for part in PARTS}
    mixer, feed_forward = layer.mixer, layer.feed_forward
    if not isinstance(mixer, Attention) or not isinstance(feed_forward, GatedMLP):
        found = f"{type(mixer).__name__} and {type(feed_forward).__name__}"
        raise TypeError(f"layer is of {found}; accepted: Attention and GatedMLP")
    qk_norm = None if mixer.qk_norm is None else replace(mixer.qk_norm, experts=of["attention"])
    return replace(
        layer,
        norm=replace(layer.norm, experts=of["norms"]),
        mixer=replace(mixer, linear=Linear(experts=of["attention"]), qk_norm=qk_norm),
        feed_forward=replace(feed_forward, linear=Linear(experts=of["mlp"])),
    )


class RoutedDecoder(Decoder):
    """A decoder whose norms, attention projections and feed-forward layers may differ by modality; all tokens attend together.

    Who goes where is read off the token table of each forward pass, while decoding as before: an image that arrives after a cache
    meets the weights of images. A part that is not routed has the first expert's weights alone, and they serve everybody.

    Args:
        dim, num_layers, dropout, positions: as for ``Decoder``.
        experts: names of the sets of weights, those of modalities unless ``route`` is given.
        routed: which parts differ by expert, of ``PARTS``, and ``LAST_NORM``.
        route: a rule of one's own, from the token table to each token's expert; ``by_modality`` if None.
        llama: the arguments of ``llama_layer``.

    Raises:
        ValueError: for sizes that do not go together, unknown parts, or experts that nothing leads to.

    Source: EVEv2 (arXiv 2502.06788; baaivision/EVE), LlamaFusion (arXiv 2412.15188), Mono-InternVL (arXiv 2410.08202;
        OpenGVLab/Mono-InternVL), BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import Modality
        >>> from mmblocks.trunks import RoutedDecoder
        >>> trunk = RoutedDecoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64, experts=("text", "vision"))
        >>> table = TokenTable.text(1, 5)
        >>> table.modality[:, :3] = Modality.VISION  # three tokens of an image, with weights of their own
        >>> tuple(trunk(torch.randn(1, 5, 32), table).shape)
        (1, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (EVE2_LAYOUT, MONO_INTERNVL_LAYOUT)

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        experts: Sequence[str] = ("text", "vision"),
        routed: Sequence[str] = PARTS,
        route: RouteRule | None = None,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        layer = routed_layer(llama_layer(**llama), experts, routed)
        norm = replace(layer.norm, experts=tuple(experts)) if LAST_NORM in routed else None
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, norm=norm, dropout=dropout, route=route, positions=positions)

    @classmethod
    def from_decoder(
        cls,
        decoder: Decoder,
        *,
        experts: Sequence[str] = ("text", "vision"),
        routed: Sequence[str] = PARTS,
        route: RouteRule | None = None,
    ) -> Self:
        """A routed trunk that computes what ``decoder`` does, whoever a token is: each expert begins with a copy of its weights.

        Args:
            decoder: a plain ``Decoder``; it is left as it is.
            experts: names of the sets of weights.
            routed: which parts differ by expert.
            route: a rule of one's own for who goes where.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
            ValueError: a decoder with ``layers`` of its own.
        """
        trunk = unfilled(cls, decoder, experts=experts, routed=routed, route=route)
        weights = decoder.state_dict()
        copied = {name: weights[without_expert(name, tuple(experts))].clone() for name in trunk.state_dict()}
        trunk.load_state_dict(copied, assign=True)
        return trunk.train(decoder.training)
