"""routed_linear against computing every weight for every row and choosing: values, gradients, compiled."""

import pytest
import torch

from mmblocks.ops.routed_linear import group_rows, routed_linear

GROUPS = {
    "mixed": [1, 0, 0, 1, 2, 0, 2, 1, 1],
    "one empty": [2, 0, 2, 0, 0],
    "one group": [1, 1, 1],
    "one row": [2],
    "no rows": [],
}


def both_ways(group: list[int], *, biases: bool, compiled: bool = False):
    """Ours and the dense way, each with the gradients of x, the weights and the biases."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor(group, dtype=torch.long)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    x, weights = leaf(len(group), 5), [leaf(4, 5) for _ in range(3)]
    offsets = [leaf(4) for _ in range(3)] if biases else []
    upstream = torch.randn(len(group), 4, generator=generator)

    def routed(x):
        groups = group_rows(numbers, 3)
        return groups.restore(routed_linear(groups.sort(x), groups, weights, offsets or None))

    def dense(x):
        every = torch.stack([x @ w.T + (offsets[n] if biases else 0) for n, w in enumerate(weights)])
        return every[numbers, torch.arange(len(group))]

    results = []
    for function in (torch.compile(routed, fullgraph=True, backend="aot_eager") if compiled else routed, dense):
        out = function(x)
        results.append([out, *torch.autograd.grad(out, [x, *weights, *offsets], upstream)])
    return results


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_each_row_meets_its_own_weight(group, biases) -> None:
    for got, wanted in zip(*both_ways(group, biases=biases), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.unchecked
@pytest.mark.parametrize("biases", [False, True])
def test_the_same_in_one_compiled_graph(biases) -> None:
    torch.compiler.reset()
    for got, wanted in zip(*both_ways(GROUPS["mixed"], biases=biases, compiled=True), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.unchecked
def test_frozen_weights_get_no_gradient_in_a_graph() -> None:
    torch.compiler.reset()
    weights = [torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x):
        groups = group_rows(torch.tensor([0, 1, 1]), 2)
        return routed_linear(groups.sort(x), groups, weights)

    x = torch.randn(3, 5)
    function(x).sum().backward()
    assert weights[0].grad is None
    torch.testing.assert_close(weights[1].grad, x[1:].sum(0).expand(4, 5))


def test_rows_of_a_group_without_weight_are_zeros() -> None:
    groups = group_rows(torch.tensor([1, 0, 1, 0]), 2)
    x, weight = torch.randn(4, 5), torch.randn(3, 5)
    out = groups.restore(routed_linear(groups.sort(x), groups, [None, weight]))
    assert not out[[1, 3]].any()
    torch.testing.assert_close(out[[0, 2]], x[[0, 2]] @ weight.T)


def test_a_group_without_rows_has_zeros_as_gradient() -> None:
    groups = group_rows(torch.zeros(3, dtype=torch.long), 2)
    weights = [torch.randn(4, 5, requires_grad=True) for _ in range(2)]
    routed_linear(torch.randn(3, 5), groups, weights).sum().backward()
    assert weights[0].grad.any() and not weights[1].grad.any()


def test_one_group_alone_is_the_plain_linear_map_bit_for_bit() -> None:
    x, weight = torch.randn(7, 64), torch.randn(48, 64)
    groups = group_rows(torch.zeros(7, dtype=torch.long), 2)
    with torch.no_grad():
        assert torch.equal(routed_linear(x, groups, [weight, weight + 1]), torch.nn.functional.linear(x, weight))


def test_no_row_is_multiplied_twice() -> None:
    """As many multiplications as one linear map has."""
    from torch.utils.flop_counter import FlopCounterMode

    groups = group_rows(torch.tensor([0, 1] * 8), 2)
    x, weights = torch.randn(16, 32, requires_grad=True), [torch.randn(8, 32, requires_grad=True) for _ in range(2)]
    with FlopCounterMode(display=False) as counter:
        routed_linear(x, groups, weights).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 16 * 32 * 8


def test_bfloat16_and_autocast() -> None:
    groups = group_rows(torch.tensor([0, 1, 1]), 2)
    x, weights = torch.randn(3, 5), [torch.randn(4, 5) for _ in range(2)]
    half = routed_linear(x.bfloat16(), groups, [w.bfloat16() for w in weights])
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert routed_linear(x, groups, [None, weights[1]]).dtype == torch.bfloat16


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"group lies in \[0, 3\]; accepted: \[0, 1\]"):
        group_rows(torch.tensor([0, 3]), 2)
    with pytest.raises(ValueError, match=r"group has shape \(1, 2\)"):
        group_rows(torch.tensor([[0, 1]]), 2)
    groups = group_rows(torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="1 weights and 2 biases"):
        routed_linear(torch.randn(2, 5), groups, [torch.randn(4, 5)])
