"""Emu's Causal Former: learned queries, one seeing only those before it, read an image into a fixed number of embeddings.

Shapes: B images, L tokens of an image, Q queries, C width of the features, E width inside, D width of the trunk.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding, relu, rms_norm, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.connectors.grids import Grid, check_width

_EPS = 1e-6

_T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_decoder_layers": 12}
"""Of the stack that Emu takes from the Hub, and that its own config does not repeat."""


def _rules(prefix: str) -> tuple[Rule, ...]:
    block = f"{prefix}cformer.block.{{}}.layer"
    kinds = (("0.SelfAttention", "attention"), ("1.EncDecAttention", "cross_attention"))
    names = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
    norms = enumerate(("attention_norm", "cross_attention_norm", "mlp_norm"))
    return (
        Rule(f"{prefix}causal_tokens", "queries"),
        # Only the first block has the table, which all share.
        Rule(f"{prefix}cformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position_table"),
        *(Rule(f"{block}.{kind}.{key}.weight", f"layers.{{}}.{mine}.{name}.weight") for kind, mine in kinds for key, name in names),
        Rule(f"{block}.2.DenseReluDense.wi.weight", "layers.{}.up.weight"),
        Rule(f"{block}.2.DenseReluDense.wo.weight", "layers.{}.down.weight"),
        *(Rule(f"{block}.{number}.layer_norm.weight", f"layers.{{}}.{norm}.weight") for number, norm in norms),
        Rule(f"{prefix}cformer.final_layer_norm.weight", "norm.weight"),
        Rule(f"{prefix}projection.*", "projection.*"),
    )


def _stack(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the stack, from T5's config."""
    t5 = _T5_BASE | dict(config.get("t5_config", {}))
    if t5.get("feed_forward_proj", "relu") != "relu":
        raise ValueError(f"feed_forward_proj is {t5['feed_forward_proj']!r}; accepted: 'relu'")
    if t5.get("layer_norm_epsilon", _EPS) != _EPS:
        raise ValueError(f"layer_norm_epsilon is {t5['layer_norm_epsilon']}; accepted: {_EPS}")
    return {
        "hidden_dim": t5["d_model"],
        "num_layers": t5["num_decoder_layers"],
        "num_heads": t5["num_heads"],
        "head_dim": t5["d_kv"],
        "mlp_dim": t5["d_ff"],
        "num_buckets": t5.get("relative_attention_num_buckets", 32),
        "max_distance": t5.get("relative_attention_max_distance", 128),
    }


def _alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class."""
    return {"in_dim": config["vision_width"], "dim": config["output_dim"], "num_queries": config["n_causal"], **_stack(config)}


def _emu(config: Mapping[str, Any]) -> dict[str, Any]:
    """Emu's config; what it does not say is as published, since Emu's files of weights have no config beside them."""
    return {
        "in_dim": config.get("vision_cfg", {}).get("width", 1408),
        "dim": config.get("llama", {}).get("hidden_size", 5120),
        "num_queries": config.get("multimodal_cfg", {}).get("n_causal", 32),
        "input_norm": True,
        **_stack(config),
    }


class CausalFormer(Block):
    """A T5 decoder over learned queries that reads the image's features, and a linear layer to the trunk's width.

    Query number i sees those before it and all features, so that embedding i can be predicted from those before it.

    Args:
        in_dim: C.
        dim: D.
        num_queries: Q.
        hidden_dim: E.
        num_layers, num_heads, head_dim, mlp_dim: sizes of the stack; heads need not fill its width.
        num_buckets, max_distance: of T5's relative positions.
        input_norm: a layer norm of the features, in Emu called ``ln_visual``.

    The defaults are those of Emu. There is no dropout, which T5's training has.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("causal_former", _rules(""), ignored=("cformer.embed_tokens.weight",), config=_alone),
        Layout(
            "emu",
            (Rule("ln_visual.*", "input_norm.*"), *_rules("cformer.")),
            ignored=("visual.*", "decoder.*", "cformer.cformer.embed_tokens.weight"),
            config=_emu,
        ),
    )

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
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.num_queries = num_queries
        self.max_distance = max_distance
        self.input_norm = nn.LayerNorm(in_dim, eps=_EPS) if input_norm else None
        self.queries = nn.Parameter(torch.empty(1, num_queries, hidden_dim).normal_(std=0.02))
        self.position_table = nn.Parameter(torch.empty(num_buckets, num_heads).normal_(std=hidden_dim**-0.5))
        self.layers = nn.ModuleList(_Layer(hidden_dim, in_dim, num_heads, head_dim, mlp_dim) for _ in range(num_layers))
        self.norm = RMSNorm(hidden_dim)
        self.projection = nn.Linear(hidden_dim, dim)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B Q D"]:
        """What the queries read in the features of each image, a class token and all.

        Raises:
            ValueError: features of another width than ``in_dim``.
        """
        return self.projection(self.norm(self.states(features)[-1]).to(self.projection.weight.dtype))

    def states(self, features: Float[Tensor, "B *grid C"]) -> list[Float[Tensor, "B Q E"]]:
        """The queries behind each layer, before the last norm; raises as ``forward``."""
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
    """T5's numbers of how far back something lies: exact for half of the buckets, then by logarithm up to ``max_distance``.

    What lies ahead counts as no distance.
    """
    exact = num_buckets // 2
    distance = distance.clamp(min=0)
    growth = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = exact + (growth * (num_buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=num_buckets - 1))


class RMSNorm(nn.Module):
    """T5's norm, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Keeps shape and dtype."""
        return self.weight * rms_norm(x.float(), x.shape[-1:], eps=_EPS).to(x.dtype)


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
    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = _Attention(dim, dim, num_heads, head_dim)
        self.cross_attention_norm = RMSNorm(dim)
        self.cross_attention = _Attention(dim, context_dim, num_heads, head_dim)
        self.mlp_norm = RMSNorm(dim)
        self.up = nn.Linear(dim, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, bias)
        x = x + self.cross_attention(self.cross_attention_norm(x), context)
        return x + self.down(relu(self.up(self.mlp_norm(x))))
