"""The Q-Former of BLIP-2: a few learned queries that read the features of an image.

Shapes: B images, Q queries, L features of an image, D width of the queries, C width of the features.
"""

from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Rule
from mmblocks.layers.activations import activation_of
from mmblocks.layers.attention.cross_attention import CrossAttention

_ATTENTION = (
    ("self.query.*", "attention.query.*"),
    ("self.key.*", "attention.key.*"),
    ("self.value.*", "attention.value.*"),
    ("output.dense.*", "attention.out.*"),
    ("output.LayerNorm.*", "norm.*"),
)


def qformer_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of a Q-Former without its text half, as in BLIP-2's files; the queries, which lie elsewhere, left out."""
    layer, mine = f"{theirs}.bert.encoder.layer.{{}}", f"{ours}.layers.{{}}"
    kinds = (("attention", "attention"), ("crossattention", "cross_attention"))
    return (
        Rule(f"{theirs}.bert.embeddings.LayerNorm.*", f"{ours}.norm.*"),
        *(Rule(f"{layer}.{kind}.{key}", f"{mine}.{own}.{name}") for kind, own in kinds for key, name in _ATTENTION),
        Rule(f"{layer}.intermediate_query.dense.*", f"{mine}.up.*"),
        Rule(f"{layer}.output_query.dense.*", f"{mine}.down.*"),
        Rule(f"{layer}.output_query.LayerNorm.*", f"{mine}.norm.*"),
    )


class QFormerArguments(TypedDict, total=False):
    """The arguments of ``QFormerSizes``, for the signatures of classes that pass them on."""

    num_queries: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    cross_attention_every: int
    causal: bool


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """Sizes of a ``QFormer``: the arguments that the classes made of one share. The defaults are BLIP-2's.

    Attributes:
        num_queries: Q.
        num_layers: layers.
        num_heads: heads of each.
        mlp_dim: inner width of the feed-forward layers.
        cross_attention_every: every how many layers attend to the features, from the first on.
        causal: let a query see only those before it.
    """

    num_queries: int = 32
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    cross_attention_every: int = 2
    causal: bool = False


class QFormer(Block):
    """BERT layers over learned queries, some of which also attend to the image's features; norms after each residual.

    Args:
        dim: D.
        context_dim: C.
        activation: of the feed-forward layers; see ``ACTIVATIONS``.
        norm_eps: of all norms; the default is BERT's.
        sizes: the arguments of ``QFormerSizes``.

    There is no dropout, which BERT's training has.

    Source: BLIP-2 (arXiv 2301.12597; salesforce/LAVIS); causal in SEED (arXiv 2307.08041; AILab-CVC/SEED).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import QFormer
        >>> former = QFormer(num_queries=5, dim=16, context_dim=8, num_layers=2, num_heads=2, mlp_dim=16)
        >>> tuple(former(torch.randn(2, 7, 8)).shape)
        (2, 5, 16)
    """

    shorthand = QFormerSizes

    def __init__(
        self,
        *,
        dim: int = 768,
        context_dim: int = 1408,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        **sizes: Unpack[QFormerArguments],
    ) -> None:
        super().__init__()
        own = QFormerSizes(**sizes)
        self.queries = nn.Parameter(torch.empty(1, own.num_queries, dim).normal_(std=0.02))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        reads = (context_dim if layer % own.cross_attention_every == 0 else None for layer in range(own.num_layers))
        self.layers = nn.ModuleList(
            _Layer(dim, width, own.num_heads, own.mlp_dim, own.causal, activation, norm_eps) for width in reads
        )

    def forward(self, context: Float[Tensor, "B L C"]) -> Float[Tensor, "B Q D"]:
        """What the queries read in the features of each image."""
        x = self.norm(self.queries).expand(len(context), -1, -1)
        for layer in self.layers:
            x = layer(x, context)
        return x


class _Layer(nn.Module):
    def __init__(
        self, dim: int, context_dim: int | None, num_heads: int, mlp_dim: int, causal: bool, activation: str, eps: float
    ) -> None:
        super().__init__()
        self.attention = _ResidualAttention(dim, dim, num_heads, causal, eps)
        self.cross_attention = None if context_dim is None else _ResidualAttention(dim, context_dim, num_heads, False, eps)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.activation = activation_of(activation)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention(x, x)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        return self.norm(x + self.down(self.activation(self.up(x))))


class _ResidualAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, num_heads: int, causal: bool, eps: float) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, num_heads, context_dim)
        self.attend = partial(scaled_dot_product_attention, is_causal=causal)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, context, self.attend))
