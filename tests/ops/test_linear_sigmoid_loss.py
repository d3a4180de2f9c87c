"""The loss of each logit by itself, beside the logits written out in float64."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.utils.flop_counter import FlopCounterMode

from mmblocks.ops.linear_sigmoid_loss import linear_sigmoid_loss


def inputs(size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows, dim, num_ids = size
    values = [torch.randn(*shape, generator=generator) for shape in ((num_rows, dim), (num_ids, dim), (num_ids,))]
    return [value.to(dtype).requires_grad_() for value in values] + [torch.randint(num_ids, (num_rows,), generator=generator)]


def written_out(hidden, weight, target, bias) -> torch.Tensor:
    logits = hidden.double() @ weight.double().T + bias.double()
    truth = one_hot(target, len(weight)).double()
    return binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean()


@pytest.mark.parametrize("size", [(7, 5, 11), (1, 4, 3), (33, 8, 1)])
@pytest.mark.parametrize("rows_a_chunk", [1, 3, 1000])
@pytest.mark.parametrize("single", [True, False])
def test_value_and_gradients_are_those_of_the_logits(size, rows_a_chunk, single) -> None:
    hidden, weight, bias, target = inputs(size)
    if single:
        bias = torch.tensor(-2.0, requires_grad=True)
    loss = linear_sigmoid_loss(hidden, weight, target, bias, chunk_bytes=rows_a_chunk * 4 * size[2])
    wanted = written_out(hidden, weight, target, bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted.float())
    values = (hidden, weight, bias)
    for one, other in zip(*(torch.autograd.grad(3 * value, values) for value in (loss, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_by_differences() -> None:
    hidden, weight, bias, target = inputs((4, 3, 5), torch.float64)
    torch.autograd.gradcheck(lambda *values: linear_sigmoid_loss(*values[:2], target, values[2]), (hidden, weight, bias))


def test_half_precision_is_no_worse_than_logits_written_out() -> None:
    hidden, weight, _, target = inputs((65, 32, 257), torch.bfloat16)
    bias = torch.tensor(-10.03)
    exact = written_out(hidden, weight, target, bias)
    plain = binary_cross_entropy_with_logits((hidden @ weight.T).float() + bias, one_hot(target, 257).float(), reduction="none")
    loss = linear_sigmoid_loss(hidden, weight, target, bias)
    assert (loss - exact).abs() <= 2 * (plain.sum(1).mean() - exact).abs() + 1e-4


def test_extreme_strided_and_empty() -> None:
    hidden, weight, bias, target = inputs((6, 4, 9))
    expected = linear_sigmoid_loss(hidden, weight, target, bias)
    torch.testing.assert_close(linear_sigmoid_loss(hidden.T.contiguous().T, weight.repeat(1, 2)[:, :4], target, bias), expected)
    huge = linear_sigmoid_loss(hidden * 1e10, weight * 1e10, target)
    assert huge.isfinite() and torch.autograd.grad(huge, hidden)[0].isfinite().all()
    assert linear_sigmoid_loss(hidden[:0], weight, target[:0]) == 0


def test_nothing_is_made_ahead_where_no_gradient_is_recorded() -> None:
    hidden, weight, bias, target = inputs((6, 4, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear_sigmoid_loss(hidden, weight, target, bias)
    assert counter.get_total_flops() == 2 * 6 * 4 * 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.tensor([0, 9])}, "target holds 9; accepted: 0 to 4"),
        ({"target": torch.tensor([0])}, "target has shape"),
        ({"hidden": torch.zeros(2, 4)}, "hidden has shape"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\); accepted: \(\) or \(5,\)"),
    ],
)
def test_what_does_not_fit_is_named(changes, message) -> None:
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "target": torch.tensor([0, 1]), **changes}
    with pytest.raises(ValueError, match=message):
        linear_sigmoid_loss(**arguments)


@pytest.mark.unchecked
def test_compiled_in_one_graph() -> None:
    hidden, weight, bias, target = inputs((9, 4, 12))
    compiled = torch.compile(linear_sigmoid_loss, fullgraph=True, backend="aot_eager")
    losses = [loss(hidden, weight, target, bias) for loss in (compiled, linear_sigmoid_loss)]
    torch.testing.assert_close(*losses)
    for one, other in zip(*(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in losses), strict=True):
        torch.testing.assert_close(one, other)
