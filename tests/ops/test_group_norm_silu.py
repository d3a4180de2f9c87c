"""Group norm and SiLU in one op, and its place in the convolutional layers."""

import pytest
import torch
from torch import nn
from torch.nn.functional import group_norm, silu

from mmblocks.ops.group_norm_silu import group_norm_silu
from mmblocks.tokenizers.conv.blocks import GroupNorm, SpatialNorm, norm_silu


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 12, 3, 4, 5), (3, 8, 1, 1), (2, 4, 9), (0, 4, 2, 2)])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_two_steps(shape, plain, dtype) -> None:
    x = draws(*shape, dtype=dtype) + 3
    weight, bias = (None, None) if plain else (draws(shape[1], seed=seed, dtype=dtype) for seed in (1, 2))
    found = group_norm_silu(x, 2, weight, bias, 1e-6)
    assert found.dtype == dtype
    if len(x):
        wide = (None if value is None else value.double() for value in (weight, bias))
        exact = silu(group_norm(x.double(), 2, *wide, 1e-6))
        plainly = (silu(group_norm(x, 2, weight, bias, 1e-6)).double() - exact).norm()
        assert (found.double() - exact).norm() <= 2 * plainly + 1e-6


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_by_differences(memory_format) -> None:
    x = draws(2, 4, 3, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight, bias = (draws(4, seed=seed, dtype=torch.float64).requires_grad_() for seed in (1, 2))
    torch.autograd.gradcheck(lambda x, weight, bias: group_norm_silu(x, 2, weight, bias), (x, weight, bias))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="x has 6 channels, num_groups is 4; accepted: groups that divide the channels"):
        group_norm_silu(torch.zeros(1, 6, 2, 2), 4)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\); accepted: \(6,\)"):
        group_norm_silu(torch.zeros(1, 6, 2, 2), 3, torch.ones(5))


@pytest.mark.parametrize("norm", [GroupNorm(64), nn.GroupNorm(4, 64, affine=False), nn.BatchNorm2d(64), nn.Identity()])
def test_layers_take_any_norm_before_silu(norm) -> None:
    x = draws(2, 64, 3, 5)
    torch.testing.assert_close(norm_silu(norm, x), silu(norm(x)))


def test_layers_hand_a_condition_to_the_norm() -> None:
    norm = SpatialNorm(32, condition_dim=4)
    x, condition = draws(2, 32, 4, 6), draws(2, 4, 2, 3)
    torch.testing.assert_close(norm_silu(norm, x, condition), silu(norm(x, condition)))


@pytest.mark.unchecked
def test_compiled_in_one_graph() -> None:
    x, weight, bias = draws(2, 4, 3, 5), draws(4, seed=1), draws(4, seed=2)
    compiled = torch.compile(group_norm_silu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 2, weight, bias), group_norm_silu(x, 2, weight, bias))
