"""A layer of ACDiT.

Shapes: N rows, L tokens, T noised blocks, D width.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mmblocks.layers.attention.attend import Prepared, attend
from mmblocks.layers.diffusion.adaln import Modulation, modulate
from mmblocks.models.acdit.positions import Angles, turn
from mmblocks.trunks.caches.kv_cache import KVCache


class ACDiTLayer(nn.Module):
    """Attention and feed-forward; the noised tokens alone are shifted, scaled and gated by their block's condition."""

    def __init__(self, *, dim: int, num_heads: int, mlp_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.output = nn.Linear(dim, dim)
        self.mlp_norm = nn.RMSNorm(dim, eps=1e-6)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)
        self.modulation = Modulation(dim, dim, 6)

    def forward(
        self,
        x: Float[Tensor, "N L D"],
        condition: Float[Tensor, "N T D"],
        num_clean: int,
        table: Angles,
        mask: Prepared | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "N L D"]:
        """One layer; the first ``num_clean`` tokens are clean, the others those of T noised blocks."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)

        def changed(tokens: Tensor, gate: Tensor | None, *moves: Tensor) -> Tensor:
            clean, noised = tokens[:, :num_clean], tokens[:, num_clean:]
            blocks = noised.unflatten(1, (condition.shape[1], -1))
            blocks = modulate(blocks, *(move[:, :, None] for move in moves)) if gate is None else gate[:, :, None] * blocks
            return torch.cat([clean, blocks.flatten(1, 2)], dim=1)

        attended = self._attend(changed(self.attention_norm(x), None, shift1, scale1), table, mask, cache, layer)
        x = x + changed(attended, gate1)
        fed = self.down(gelu(self.up(changed(self.mlp_norm(x), None, shift2, scale2)), approximate="tanh"))
        return x + changed(fed, gate2)

    def _attend(self, x: Tensor, table: Angles, mask: Prepared | None, cache: KVCache | None, layer: int) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "n l (three h d) -> three n h l d", three=3, d=self.head_dim)
        query, key = turn(self.query_norm(query), table), turn(self.key_norm(key), table)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        # Without a mask every key is seen.
        attended = scaled_dot_product_attention(query, key, value) if mask is None else attend(query, key, value, mask)
        return self.output(rearrange(attended, "n h l d -> n l (h d)"))
