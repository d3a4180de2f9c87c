"""One projector for several numbers of tokens: by its formula, and drawn while training."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate, layer_norm, silu

from mmblocks.connectors.token_flex import TokenFlexProjector


@pytest.mark.parametrize(("size", "side"), [(6, 3), (7, 3), (4, 4), (3, 4)])
def test_it_is_the_published_formula(size, side) -> None:
    projector, features = TokenFlexProjector(in_dim=6, dim=8), torch.randn(2, size, size, 6)
    weights = dict(projector.layouts[0].convert(projector.state_dict(), projector.config, to="theirs"))
    whole = -(-size // side) * side
    resized = interpolate(features.permute(0, 3, 1, 2), (whole, whole), mode="bilinear", align_corners=True)
    x = layer_norm(avg_pool2d(resized, whole // side).permute(0, 2, 3, 1), (6,))
    gate, up = (x @ weights[f"mlp.{name}.weight"].T + weights[f"mlp.{name}.bias"] for name in ("f1", "f2"))
    wanted = (silu(gate) * up) @ weights["mlp.g.weight"].T + weights["mlp.g.bias"]
    torch.testing.assert_close(projector(features, num_tokens=side**2), wanted)


def test_numbers_are_drawn_and_may_be_set() -> None:
    projector = TokenFlexProjector(in_dim=6, dim=8, choices=(4, 9))
    generator = torch.Generator().manual_seed(0)
    drawn = [projector.sample_num_tokens(generator) for _ in range(20)]
    assert set(drawn) == {4, 9} and projector.sample_num_tokens(generator.manual_seed(0)) == drawn[0]
    projector.num_tokens = 4
    assert projector(torch.randn(1, 5, 5, 6)).shape == (1, 2, 2, 8) and projector.out_grid((5, 5)) == (2, 2)


@pytest.mark.parametrize(("count", "near"), [(0, 1), (5, 4), (8, 9), (-4, 1)])
def test_numbers_that_are_no_squares_are_refused(count, near) -> None:
    with pytest.raises(ValueError, match=f"num_tokens is {count}; accepted: square numbers, such as {near}$"):
        TokenFlexProjector(in_dim=6, dim=8)(torch.randn(1, 5, 5, 6), num_tokens=count)
    with pytest.raises(ValueError, match=f"num_tokens is {count}"):
        TokenFlexProjector(in_dim=6, dim=8, choices=(4, count))
