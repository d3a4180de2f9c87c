"""Gated cross-attention: by its formula, gates that begin shut, and which images a token reads."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from mmblocks import Block
from mmblocks.layers.attention.gated_cross_attention import GatedCrossAttention


def opened(**options) -> GatedCrossAttention:
    torch.manual_seed(0)
    layer = GatedCrossAttention(**({"dim": 8, "context_dim": 6, "num_heads": 3, "head_dim": 4} | options))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def test_a_new_layer_changes_nothing() -> None:
    x = torch.randn(2, 5, 8)
    assert torch.equal(GatedCrossAttention(dim=8, context_dim=6)(x, torch.randn(2, 3, 4, 6)), x)


@pytest.mark.parametrize("only_last", [True, False])
def test_each_token_by_the_formula(only_last) -> None:
    layer = opened(only_last=only_last).eval()
    weights = dict(layer.layouts[0].convert(layer.state_dict(), layer.config, to="theirs"))
    x, images = torch.randn(2, 6, 8), torch.randn(2, 3, 4, 6)
    num_before = torch.tensor([[0, 1, 1, 2, 3, 3], [0, 0, 0, 0, 1, 2]])
    given = layer(x, images, num_before)

    def norm(x, name):
        return layer_norm(x, (8,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    for row in range(2):
        for place in range(6):
            count, token = int(num_before[row, place]), x[row, place]
            first = max(count - 1, 0) if only_last else 0
            read = torch.zeros(12)
            if count:
                key, value = (images[row, first:count].flatten(0, 1) @ weights["attn.to_kv.weight"].T).chunk(2, dim=-1)
                query = norm(token, "attn.norm") @ weights["attn.to_q.weight"].T
                heads = zip(query.chunk(3), key.chunk(3, -1), value.chunk(3, -1), strict=True)
                read = torch.cat([(k @ q / 2).softmax(0) @ v for q, k, v in heads])
            token = token + read @ weights["attn.to_out.weight"].T * weights["attn_gate"].tanh()
            inner = gelu(norm(token, "ff.0") @ weights["ff.1.weight"].T)
            wanted = token + inner @ weights["ff.3.weight"].T * weights["ff_gate"].tanh()
            torch.testing.assert_close(given[row, place], wanted, atol=1e-4, rtol=1e-4)


def test_without_counts_every_token_reads_all_images() -> None:
    x, images = torch.randn(2, 5, 8), torch.randn(2, 3, 4, 6)
    everything = torch.full((2, 5), 3)
    torch.testing.assert_close(opened()(x, images), opened(only_last=False)(x, images, everything))


def test_gradients_dtypes_and_files(tmp_path) -> None:
    layer = opened()
    x, images, num_before = torch.randn(1, 5, 8), torch.randn(1, 1, 4, 6), torch.tensor([[0, 0, 1, 1, 1]])
    layer(x, images, num_before).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    layer.save_pretrained(tmp_path / "layer")
    again = Block.from_pretrained(tmp_path / "layer")
    assert torch.equal(again(x, images, num_before), layer(x, images, num_before))
    assert again.bfloat16()(x.bfloat16(), images.bfloat16(), num_before).dtype == torch.bfloat16


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("images", "num_before", "message"),
    [
        (torch.randn(1, 3, 6), None, r"images have shape \(1, 3, 6\); accepted: \(1, M, Q, C\)"),
        (torch.randn(2, 3, 4, 6), None, "as many rows as x"),
        (torch.randn(1, 3, 4, 6), torch.tensor([[0, 4]]), r"num_before lies in \[0, 4\]; accepted: \[0, 3\]"),
        (torch.randn(1, 3, 4, 6), torch.tensor([[-1, 0]]), r"num_before lies in \[-1, 0\]"),
    ],
)
def test_what_does_not_fit_is_refused(images, num_before, message) -> None:
    with pytest.raises(ValueError, match=message):
        opened()(torch.randn(1, 2, 8), images, num_before)
