"""A decoder in which each modality has weights of its own under one attention.

EVEv2, LlamaFusion and other mixtures of transformers; with routed feed-forward layers alone Mono-InternVL and SynerGen-VL.

Shapes: B batch, L new tokens, N = B * L tokens sorted by expert, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.configurable import parameters
from mmblocks.ops.routed_linear import RowGroups, group_rows
from mmblocks.sequence.positions import PositionScheme
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.routed.eve2_layout import EVE2_LAYOUT
from mmblocks.trunks.routed.mono_internvl_layout import MONO_INTERNVL_LAYOUT
from mmblocks.trunks.routed.routed_layers import RoutedAttention, RoutedLayer, RoutedLinear, RoutedNorm, RoutedSwiGLU

RouteRule = Callable[[TokenTable], Tensor]
"""A table -> (B, L) int64: the number of the expert that each token goes to."""

PARTS = ("norms", "attention", "mlp")
"""What can be routed. The norms of heads go with the attention; the norm after the last layer is everybody's."""


def by_modality(table: TokenTable, experts: Sequence[str] = ("text", "vision")) -> Int[Tensor, "B L"]:
    """The expert that is named after the token's modality; the first one for padding and for modalities that have none."""
    group = torch.zeros_like(table.modality)
    for number, name in enumerate(experts):
        group = torch.where(table.modality == Modality[name.upper()].value, number, group)
    return group


def text_when_alone(table: TokenTable) -> Int[Tensor, "B L"]:
    """By modality, but to the text weights where a pass reads one token only, whatever it is: what EVEv2's own code does.

    Mono-InternVL's own code goes further, and sends all that is read after a cache to the text weights.

    Source: baaivision/EVE.
    """
    group = by_modality(table)
    return torch.zeros_like(group) if table.shape[1] == 1 else group


class RoutedDecoder(Decoder):
    """A decoder whose norms, attention projections and feed-forward layers may differ by modality; all tokens attend together.

    Who goes where is read off the token table of each forward pass, while decoding as before: an image that arrives after a cache
    meets the weights of images. A part that is not routed has the first expert's weights alone, and they serve everybody.

    Args:
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, head_dim, norm_eps, rope_theta, rope_scaling, rope_sections, qk_norm,
            qkv_bias, dropout, positions: as for ``Decoder``.
        experts: names of the sets of weights, those of modalities unless ``route`` is given.
        routed: which parts differ by expert, of ``PARTS``.
        route: a rule of one's own, from the token table to each token's expert; ``by_modality`` if None.

    Raises:
        ValueError: for sizes that do not go together, unknown parts, or experts that nothing leads to.

    Source: EVEv2 (arXiv 2502.06788; baaivision/EVE), LlamaFusion (arXiv 2412.15188), Mono-InternVL (arXiv 2410.08202;
        OpenGVLab/Mono-InternVL).

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
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_sections: tuple[int, ...] | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        experts: Sequence[str] = ("text", "vision"),
        routed: Sequence[str] = PARTS,
        route: RouteRule | None = None,
    ) -> None:
        # No layers of Decoder's own: this class's stand in their place below.
        super().__init__(
            dim=dim,
            num_layers=0,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rope_sections=rope_sections,
            dropout=dropout,
            positions=positions,
        )
        check_experts(experts, route)
        if not set(routed) <= set(PARTS):
            raise ValueError(f"routed is {tuple(routed)}; accepted: some of {PARTS}")
        self.experts, self.route = tuple(experts), route
        of = {part: self.experts if part in routed else self.experts[:1] for part in PARTS}

        def linear(part: str, width: int, out: int, bias: bool = False) -> RoutedLinear:
            return RoutedLinear(width, out, experts=of[part], bias=bias)

        def norm(part: str, width: int) -> RoutedNorm:
            return RoutedNorm(width, eps=norm_eps, experts=of[part])

        inner, inner_kv = num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.layers = nn.ModuleList(
            RoutedLayer(
                attention_norm=norm("norms", dim),
                attention=RoutedAttention(
                    query=linear("attention", dim, inner, qkv_bias),
                    key=linear("attention", dim, inner_kv, qkv_bias),
                    value=linear("attention", dim, inner_kv, qkv_bias),
                    output=linear("attention", inner, dim),
                    query_norm=norm("attention", self.head_dim) if qk_norm else None,
                    key_norm=norm("attention", self.head_dim) if qk_norm else None,
                    head_dim=self.head_dim,
                ),
                mlp_norm=norm("norms", dim),
                mlp=RoutedSwiGLU(
                    gate=linear("mlp", dim, mlp_dim), up=linear("mlp", dim, mlp_dim), down=linear("mlp", mlp_dim, dim)
                ),
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

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
        """
        trunk = unfilled(cls, decoder, experts=experts, routed=routed, route=route)
        weights = decoder.state_dict()
        copied = {name: weights[without_expert(name, trunk.experts)].clone() for name in trunk.state_dict()}
        trunk.load_state_dict(copied, assign=True)
        return trunk.train(decoder.training)

    def groups_of(self, table: TokenTable) -> RowGroups:
        """The tokens of all rows, sorted by expert."""
        group = by_modality(table, self.experts) if self.route is None else self.route(table)
        return group_rows(group.flatten(), len(self.experts))

    def _through_layers(
        self,
        x: Tensor,
        table: TokenTable,
        context: tuple[Any, ...],
        cache: KVCache | None,
        taps: dict[int, Tensor] | None,
        hooks: TrunkHooks | None,
    ) -> Tensor:
        if not table.shape[1]:  # sorted rows of no token do not tell how many rows there were
            (taps or {}).update(dict.fromkeys(set(taps or {}) & set(range(len(self.layers))), x))
            return x
        groups = self.groups_of(table)
        if hooks is not None:
            hooks = hooks.reshaped(lambda rows: groups.restore(rows).view_as(x), lambda states: groups.sort(states.flatten(0, 1)))
        ordered = super()._through_layers(groups.sort(x.flatten(0, 1)), table, (*context, groups), cache, taps, hooks)
        for number in range(len(self.layers)):
            if taps is not None and number in taps:
                taps[number] = groups.restore(taps[number]).view_as(x)
        return groups.restore(ordered).view_as(x)


def check_experts(experts: Sequence[str], route: RouteRule | None) -> None:
    """Refuses names of experts that mean nothing.

    Raises:
        ValueError: no names, equal ones, or ones that are no modality where no rule says who goes there.
    """
    if not experts or len(set(experts)) != len(experts) or not all(name.isidentifier() for name in experts):
        raise ValueError(f"experts is {tuple(experts)}; accepted: one or more different identifiers")
    known = [modality.name.lower() for modality in Modality]
    strange = [name for name in experts if name not in known]
    if strange and route is None:
        raise ValueError(f"experts has {strange}, which are no modalities: give route, or names among {known}")


def unfilled(cls: type[Any], decoder: Decoder, **options: Any) -> Any:
    """A trunk of the decoder's sizes, without values.

    Raises:
        TypeError: a decoder of another class, whose layers may compute something else.
        ValueError: a decoder with options that ``cls`` does not have.
    """
    if type(decoder) is not Decoder:
        raise TypeError(f"decoder is a {type(decoder).__name__}; accepted: a plain Decoder")
    arguments, known, plain = decoder.config, parameters(cls), parameters(Decoder)
    unknown = {name: value for name, value in arguments.items() if name not in known and value != plain[name].default}
    if unknown:
        raise ValueError(f"decoder has {unknown}, which a {cls.__name__} cannot have")
    with torch.device("meta"):
        return cls(**{name: value for name, value in arguments.items() if name in known}, **options)


def without_expert(name: str, experts: Sequence[str]) -> str:
    """What a plain decoder calls a weight: ``mlp.up.vision.weight`` is its ``mlp.up.weight``."""
    *path, last, tensor = name.split(".")
    return ".".join([*path, tensor]) if last in experts else name
