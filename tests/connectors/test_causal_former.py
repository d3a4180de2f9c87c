"""The Causal Former beyond the golden cases: who sees whom, mixed dtypes, other distances."""

import pytest
import torch

from mmblocks.connectors.causal_former import CausalFormer, distance_buckets


def former(**options) -> CausalFormer:
    torch.manual_seed(0)
    sizes = {"in_dim": 6, "dim": 8, "num_queries": 5, "hidden_dim": 12, "num_layers": 2, "num_heads": 3, "head_dim": 4}
    return CausalFormer(**(sizes | {"mlp_dim": 10} | options))


def test_a_query_does_not_see_those_behind_it() -> None:
    part, features = former(), torch.randn(2, 3, 6)
    before = part(features)
    with torch.no_grad():
        part.queries[:, 3].normal_()
    after = part(features)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_distances_are_those_of_t5(num_buckets, max_distance) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-3, 200)
    wanted = T5Attention._relative_position_bucket(-distance, False, num_buckets, max_distance)
    assert torch.equal(distance_buckets(distance, num_buckets, max_distance), wanted)


def test_the_stack_may_be_in_bfloat16_alone_as_published() -> None:
    part = former(input_norm=True)
    part.layers.bfloat16()
    part.norm.bfloat16()
    part.position_table.data = part.position_table.data.bfloat16()
    assert part(torch.randn(1, 3, 6)).dtype == torch.float32


def test_other_stacks_are_refused() -> None:
    alone = next(layout for layout in CausalFormer.layouts if layout.name == "causal_former")
    config = {"vision_width": 6, "output_dim": 8, "n_causal": 5}
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-gelu'; accepted: 'relu'"):
        alone.arguments(config | {"t5_config": {"feed_forward_proj": "gated-gelu"}})
    with pytest.raises(ValueError, match=r"t5_config\.is_gated_act is True"):
        alone.arguments(config | {"t5_config": {"is_gated_act": True}})
    assert CausalFormer(**{**alone.arguments(config), "num_layers": 0}).queries.shape == (1, 5, 768)
