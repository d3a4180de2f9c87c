"""Emu's Causal Former: learned queries, one seeing only those before it, read an image into a fixed number of embeddings.

Shapes: B images, L tokens of an image, Q queries, C width of the features, E width inside, D width of the trunk.
"""

import math
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding, relu, rms_norm, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.connectors.causal_former_layouts import CAUSAL_FORMER_LAYOUTS
from mmblocks.connectors.grids import Grid, check_width


class CausalFormer(Block):
    """A T5 decoder over learned queries that reads the image's features, and a linear layer to the trunk's width.

    Query i sees those before it and all features, so that embedding i can be predicted from those before it.

    Args:
        in_dim: C.
        dim: D.
        num_queries: Q.
        hidden_dim: E.
        num_layers, num_heads, head_dim, mlp_dim: sizes of the stack; heads need not fill its width.
        num_buckets, max_distance: of T5's relative positions.
        norm_eps: of the stack's norms.
        input_norm: a layer norm of the features, in Emu called ``ln_visual``.

    The defaults are those of Emu. There is no dropout, which T5's training has.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import CausalFormer
        >>> sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "head_dim": 8}
        >>> connector = CausalFormer(in_dim=8, dim=12, num_queries=5, **sizes)
        >>> tuple(connector(torch.randn(2, 4, 4, 8)).shape)
        (2, 5, 12)
    """

    layouts: ClassVar[tuple[Layout, ...]] = CAUSAL_FORMER_LAYOUTS

    def __init__(
        self,
        *,
        in_dim: int = 1408,
        dim: int = 5120,
        num_queries: int = 32,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        head_dim: int = 64,
        mlp_dim: int = 3072,
        num_buckets: int = 32,
        max_distance: int = 128,
        input_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.num_queries = num_queries
        self.max_distance = max_distance
        self.input_norm = nn.LayerNorm(in_dim, eps=1e-6) if input_norm else None
        self.queries = nn.Parameter(torch.empty(1, num_queries, hidden_dim).normal_(std=0.02))
        self.position_table = nn.Parameter(torch.empty(num_buckets, num_heads).normal_(std=hidden_dim**-0.5))
        self.layers = nn.ModuleList(_Layer(hidden_dim, in_dim, num_heads, head_dim, mlp_dim, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(hidden_dim, norm_eps)
        self.projection = nn.Linear(hidden_dim, dim)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B Q D"]:
        """What the queries read in the features of each image, a class token and all.

        Raises:
            ValueError: features of another width than ``in_dim``.
        """
        return self.projection(self.norm(self.states(features)[-1]).to(self.projection.weight.dtype))

    def states(self, features: Float[Tensor, "B *grid C"]) -> list[Float[Tensor, "B Q E"]]:
        """The queries after each layer, before the last norm; raises as ``forward``."""
        check_width(features, self.in_dim)
        context = features.flatten(1, -2)
        if self.input_norm is not None:
            context = self.input_norm(context.to(self.input_norm.weight.dtype))
        dtype = self.norm.weight.dtype  # published, the stack is in bfloat16 and what is around it in float32
        x, context = self.queries.expand(len(context), -1, -1).to(dtype), context.to(dtype)
        ahead = torch.ones(self.num_queries, self.num_queries, dtype=torch.bool, device=x.device).triu(1)
        bias = self.position_bias().to(dtype).masked_fill(ahead, -torch.inf)
        states = []
        for layer in self.layers:
            x = layer(x, context, bias)
            states.append(x)
        return states

    def position_bias(self) -> Float[Tensor, "1 H Q Q"]:
        """What each head adds to the scores of a query (second to last axis) for those before it; one for all layers."""
        place = torch.arange(self.num_queries, device=self.position_table.device)
        buckets = distance_buckets(place[:, None] - place, len(self.position_table), self.max_distance)
        return rearrange(embedding(buckets, self.position_table), "q k heads -> 1 heads q k")

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on any grid become: Q tokens."""
        return (self.num_queries,)


def distance_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's buckets of how far back something lies: exact for half of the buckets, then by logarithm up to ``max_distance``.

    What lies ahead counts as no distance.
    """
    exact = num_buckets // 2
    distance = distance.clamp(min=0)
    growth = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = exact + (growth * (num_buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=num_buckets - 1))


class RMSNorm(nn.Module):
    """T5's norm, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Keeps shape and dtype."""
        return self.weight * rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.key = nn.Linear(context_dim, num_heads * head_dim, bias=False)
        self.value = nn.Linear(context_dim, num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        query, key, value = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for tokens in (self.query(x), self.key(context), self.value(context))
        )
        # T5 has no scale: it is in the weights.
        read = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.out(rearrange(read, "b heads n d -> b n (heads d)"))


class _Layer(nn.Module):
    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int, mlp_dim: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps)
        self.attention = _Attention(dim, dim, num_heads, head_dim)
        self.cross_attention_norm = RMSNorm(dim, eps)
        self.cross_attention = _Attention(dim, context_dim, num_heads, head_dim)
        self.mlp_norm = RMSNorm(dim, eps)
        self.up = nn.Linear(dim, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, bias)
        x = x + self.cross_attention(self.cross_attention_norm(x), context)
        return x + self.down(relu(self.up(self.mlp_norm(x))))
