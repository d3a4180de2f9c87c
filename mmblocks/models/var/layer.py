"""A layer of VAR: attention and feed-forward, shifted, scaled and gated by the class.

Shapes: B rows, L tokens, H heads, D width.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from mmblocks.layers.attention.attend import Prepared, attend
from mmblocks.layers.diffusion.adaln import Modulation, modulate
from mmblocks.trunks.caches.kv_cache import KVCache

LARGEST_SCALE = math.log(100)


class VARAttention(nn.Module):
    """Self-attention whose keys have no bias.

    Args:
        dim: D.
        num_heads: H.
        l2_norm: queries and keys of length one, with a learned sharpness for each head.
    """

    def __init__(self, *, dim: int, num_heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0))) if l2_norm else None
        # Upstream's factor 0.25 is the start of the learned sharpness, which without it stays.
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(dim // num_heads)
        self.output = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B L D"], mask: Prepared | None, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "B L D"]:
        """Attends to the tokens themselves and those in the cache; to all of them where ``mask`` is None."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        query, key, value = rearrange(self.qkv(x) + bias, "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        if self.log_scale is not None:
            query = normalize(query, dim=-1) * self.log_scale.clamp(max=LARGEST_SCALE).exp()
            key = normalize(key, dim=-1)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        if mask is None:
            attended = scaled_dot_product_attention(query, key, value, scale=self.scale)
        else:
            attended = attend(query, key, value, mask, self.scale)
        return self.output(rearrange(attended, "b h l d -> b l (h d)"))


class VARLayer(nn.Module):
    """Attention and feed-forward.

    Args:
        dim, num_heads, l2_norm: see ``VARAttention``.
        mlp_dim: inner width of the feed-forward layer.
        norm_eps: of the layer norms, which have no weights.
        shared: whether one linear map serves all layers, to which each adds numbers of its own.
    """

    def __init__(self, *, dim: int, num_heads: int, mlp_dim: int, norm_eps: float, l2_norm: bool, shared: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.attention = VARAttention(dim=dim, num_heads=num_heads, l2_norm=l2_norm)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)
        self.own_modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5) if shared else None
        self.modulation = None if shared else Modulation(dim, dim, 6)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        condition: Float[Tensor, "B D"] | Float[Tensor, "B 1 6 D"],
        mask: Prepared | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B L D"]:
        """One layer; ``condition`` is the class, or where they are shared, the shifts, scales and gates themselves."""
        if self.modulation is not None:
            condition = rearrange(self.modulation(condition), "b (six d) -> b 1 six d", six=6)
        moves = condition if self.own_modulation is None else condition + self.own_modulation
        gate1, gate2, scale1, scale2, shift1, shift2 = moves.unbind(2)
        x = x + gate1 * self.attention(modulate(self.norm(x), shift1, scale1), mask, cache, layer)
        return x + gate2 * self.down(gelu(self.up(modulate(self.norm(x), shift2, scale2)), approximate="tanh"))
