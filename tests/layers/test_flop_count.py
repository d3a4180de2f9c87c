"""Counted operations are those that are written down, on every release of torch."""

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from mmblocks.layers.flop_count import count_flops


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mask", [None, "causal", "dense"])
def test_attention_counts_in_full(kv_heads: int, grad: bool, mask: str | None) -> None:
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, kv_heads, 7, 8), torch.randn(2, kv_heads, 7, 8)
    options = {"is_causal": mask == "causal", "attn_mask": torch.ones(5, 7, dtype=torch.bool) if mask == "dense" else None}
    with torch.set_grad_enabled(grad):
        counted = count_flops(lambda: scaled_dot_product_attention(query, key, value, enable_gqa=kv_heads < 4, **options))
    assert counted == 2 * 2 * 4 * 5 * 7 * (8 + 8)


def test_linear_maps_count_beside_it() -> None:
    assert count_flops(lambda: linear(torch.randn(3, 5), torch.randn(7, 5))) == 2 * 3 * 5 * 7
    assert count_flops(lambda: None) == 0
