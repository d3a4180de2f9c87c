"""Attention from some tokens to others, and the transformer layer that has it.

Shapes: B batch, L tokens, M tokens of the context, D and C their widths.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key and value, each (B, heads, tokens, width), to values (B, heads, tokens, width)."""


class CrossAttention(nn.Module):
    """Attention with several heads; queries of one sequence, keys and values of another or the same.

    Args:
        dim: D.
        context_dim: C; None for D.
        num_heads: heads.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context_dim or dim, dim)
        self.value = nn.Linear(context_dim or dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B L D"], context: Float[Tensor, "B M C"], attend: Attend = scaled_dot_product_attention
    ) -> Float[Tensor, "B L D"]:
        """``attend`` does the rest: masks and other kinds of softmax are its business."""
        query, key, value = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for tokens in (self.query(x), self.key(context), self.value(context))
        )
        return self.out(rearrange(attend(query, key, value), "b heads n d -> b n (heads d)"))


class CrossAttentionLayer(nn.Module):
    """Self-attention, cross-attention and a GELU feed-forward, each after a norm and added to its input.

    Args:
        dim, num_heads, mlp_dim: sizes.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = CrossAttention(dim, num_heads)
        self.norm_cross = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        context: Float[Tensor, "B M D"],
        attend_self: Attend = scaled_dot_product_attention,
        attend_cross: Attend = scaled_dot_product_attention,
    ) -> Float[Tensor, "B L D"]:
        """``attend_self`` and ``attend_cross``: as for ``CrossAttention``."""
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed, attend_self)
        x = x + self.cross_attention(self.norm_cross(x), context, attend_cross)
        return x + self.down(gelu(self.up(self.norm_mlp(x))))
