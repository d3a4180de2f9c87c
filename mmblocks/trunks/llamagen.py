"""LlamaGen's trunk: Llama layers with rotary positions in two dimensions.

Shapes: B batch, L new tokens, D width, H query heads, K key/value heads, C width of a head.
"""

from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.attention.attend import Prepared, attend
from mmblocks.sequence.positions import RotaryTable, grid_2d, rotary_table, rotate_interleaved
from mmblocks.sequence.tokens import NO_SPAN, TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder, DecoderLayer


def grid_rotary(table: TokenTable, head_dim: int, theta: float) -> RotaryTable:
    """The first half of a head turns with the row, the second with the column.

    Tokens that belong to no image (the condition) have cosines and sines of zero: their queries and keys vanish, and
    attention to them has a score of zero. LlamaGen is trained this way.
    """
    by_row, by_column = (rotary_table(positions, head_dim // 2, theta) for positions in grid_2d(table).unbind(-1))
    in_image = (table.span != NO_SPAN)[..., None]
    cos, sin = (torch.cat(both, dim=-1) * in_image for both in ((by_row.cos, by_column.cos), (by_row.sin, by_column.sin)))
    return RotaryTable(cos, sin)


class GridAttention(nn.Module):
    """Grouped-query self-attention whose heads are turned in neighbouring pairs of channels.

    Args:
        dim: width of input and output.
        num_heads, num_kv_heads: query heads, key/value heads.
    """

    def __init__(self, *, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "B L D"], rotary: RotaryTable, mask: Prepared, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "B L D"]:
        """Attends to the tokens themselves and, with a cache, to those before."""
        query, key, value = (
            rearrange(project(x), "b l (h c) -> b h l c", c=self.head_dim) for project in (self.query, self.key, self.value)
        )
        query, key = rotate_interleaved(query, rotary), rotate_interleaved(key, rotary)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        return self.output(rearrange(attend(query, key, value, mask), "b h l c -> b l (h c)"))


class LlamaGenTrunk(Decoder):
    """A stack of causal layers over a condition and a grid of codes; any grid, as positions come from the table.

    Args:
        dim: width.
        num_layers: layers.
        num_heads: query heads. A head's width must be a multiple of four: two axes, turned in pairs.
        mlp_dim: inner width of the feed-forward layers.
        num_kv_heads: key/value heads; ``num_heads`` if None. Must divide it.
        norm_eps: epsilon of the RMS norms.
        rope_theta: base of the rotary frequencies.
        dropout: on the embeddings and on both branches of every layer, while training.

    Raises:
        ValueError: for sizes that do not go together.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen), whose own cache has room for ``num_heads`` heads, and so fails
        with fewer key/value heads.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        dropout: float = 0.1,
    ) -> None:
        if dim % (4 * num_heads):
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; accepted: heads whose width is a multiple of 4")
        # No layers of Decoder's own: this class's stand in their place below.
        super().__init__(
            dim=dim,
            num_layers=0,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            mlp_dim=mlp_dim,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            dropout=dropout,
        )
        self.layers = nn.ModuleList(
            DecoderLayer(
                attention=GridAttention(dim=dim, num_heads=num_heads, num_kv_heads=self.num_kv_heads),
                dim=dim,
                mlp_dim=mlp_dim,
                norm_eps=norm_eps,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def _rotary(self, keys: TokenTable, length: int, **options: Any) -> RotaryTable:
        """Angles of the last ``length`` tokens."""
        return grid_rotary(keys.slice(keys.shape[1] - length, keys.shape[1]), self.head_dim, self.rope_theta)
