"""The loss of a linear map without its logits, beside the logits written out."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from mmblocks.ops import chunked_linear
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_and_choices, linear_log_prob

SIZES = [(7, 5, 11), (1, 4, 3), (33, 8, 130)]


def inputs(size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows, dim, vocab = size
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in ((num_rows, dim), (vocab, dim), (vocab,))
    )
    return hidden, weight, bias, torch.randint(vocab, (num_rows,), generator=generator)


def written_out(
    hidden, weight, target, bias, *, row_weight=None, reduction="mean", z_loss=0.0, label_smoothing=0.0, scale=1.0, softcap=None
):
    """In float64."""
    logits = (hidden.double() @ weight.double().T + bias.double()) * scale
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    losses = cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    counts = (target != -100).double() * (1 if row_weight is None else row_weight)
    losses = (losses + z_loss * logits.logsumexp(1).square()) * counts
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.sum() / counts.sum()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"z_loss": 0.1},
        {"label_smoothing": 0.2},
        {"row_weight": True},
        {"scale": 0.3},
        {"softcap": 1.5},
        {"scale": 2.5, "softcap": 0.8, "z_loss": 0.1, "label_smoothing": 0.2},
    ],
)
@pytest.mark.parametrize("rows_a_chunk", [1, 3, 1000])
def test_values_and_gradients_are_those_of_the_logits(size, reduction, options, rows_a_chunk) -> None:
    hidden, weight, bias, target = inputs(size)
    if size[0] > 1:
        target[1] = -100
    if "row_weight" in options:
        options = {"row_weight": torch.rand(size[0], generator=torch.Generator().manual_seed(1))}
    loss = linear_cross_entropy(
        hidden, weight, target, bias, reduction=reduction, chunk_bytes=rows_a_chunk * 4 * size[2], **options
    )
    expected = written_out(hidden, weight, target, bias, reduction=reduction, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.float(), atol=1e-6, rtol=1e-5)

    outside = torch.rand_like(loss)  # what a loss is multiplied by later differs from row to row
    found = torch.autograd.grad((loss * outside).sum(), (hidden, weight, bias))
    wanted = torch.autograd.grad((expected * outside).sum(), (hidden, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"scale": 1.7, "softcap": 0.9}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_by_differences(reduction, shape) -> None:
    hidden, weight, bias, target = inputs((4, 3, 5), torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, target, bias, reduction=reduction, z_loss=0.1, chunk_bytes=2 * 4 * 5, **shape)

    torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_a_range_of_ids_is_a_smaller_vocabulary() -> None:
    hidden, weight, bias, target = inputs((9, 4, 20))
    target = target % 6 + 10
    loss = linear_cross_entropy(hidden, weight, target, bias, vocab_range=(10, 16))
    expected = cross_entropy(hidden @ weight[10:16].T + bias[10:16], target - 10)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient[10:16].abs().sum() > 0 and not gradient[:10].any() and not gradient[16:].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_that_are_all_left_out_give_nothing(reduction) -> None:
    hidden, weight, bias, target = inputs((5, 4, 6))
    loss = linear_cross_entropy(hidden, weight, torch.full_like(target, -100), bias, reduction=reduction)
    assert not loss.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.sum(), (hidden, weight, bias)))
    assert linear_cross_entropy(hidden[:0], weight, target[:0], reduction=reduction).sum() == 0


def test_logits_far_above_the_cap_count_as_the_cap() -> None:
    hidden, weight, target = torch.full((2, 4), 1e4, requires_grad=True), torch.eye(6, 4).mul(1e4), torch.tensor([0, 5])
    loss = linear_cross_entropy(hidden, weight, target, reduction="none", softcap=30.0)
    capped = torch.tensor([30.0] * 4 + [0.0] * 2)
    torch.testing.assert_close(loss, cross_entropy(capped.expand(2, -1), target, reduction="none"))
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    assert not gradient.any()


def test_extreme_logits_stay_finite() -> None:
    hidden, weight = torch.full((2, 4), 1e4, requires_grad=True), torch.eye(6, 4).mul(1e4)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 5]), reduction="none")
    torch.testing.assert_close(loss, cross_entropy(hidden @ weight.T, torch.tensor([0, 5]), reduction="none"))
    assert torch.autograd.grad(loss.sum(), hidden)[0].isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision_is_no_worse_than_logits_written_out(reduction) -> None:
    hidden, weight, bias, target = inputs((65, 32, 257), torch.bfloat16)
    exact = written_out(hidden, weight, target, bias)
    plain = cross_entropy((hidden @ weight.T + bias).float(), target)
    loss = linear_cross_entropy(hidden, weight, target, bias, reduction=reduction, chunk_bytes=16 * 4 * 257).mean()
    assert (loss - exact).abs() <= 2 * (plain - exact).abs() + 1e-5

    of_exact, of_plain, of_ours = (torch.autograd.grad(value, (hidden, weight)) for value in (exact, plain, loss))
    for best, rival, ours in zip(of_exact, of_plain, of_ours, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - best).float().norm() <= 2 * (rival - best).float().norm() + 1e-6


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_emulated_half_precision_is_multiplied_in_float32_piece_by_piece(reduction, monkeypatch) -> None:
    hidden, weight, bias, target = inputs((9, 8, 30), torch.bfloat16)
    monkeypatch.setattr(chunked_linear, "PIECE_BYTES", 4 * 8 * 7)
    losses = []
    for lacks in (True, False):
        monkeypatch.setattr(chunked_linear, "lacks_arithmetic", lambda _, lacks=lacks: lacks)
        losses.append(linear_cross_entropy(hidden, weight, target, bias, reduction=reduction, chunk_bytes=2 * 4 * 30).mean())
    torch.testing.assert_close(*losses)  # logits are rounded either way
    monkeypatch.setattr(chunked_linear, "lacks_arithmetic", lambda _: True)
    of_ours, of_wide = (
        torch.autograd.grad(value, (hidden, weight, bias)) for value in (losses[0], written_out(hidden, weight, target, bias))
    )
    for ours, wide in zip(of_ours, of_wide, strict=True):
        torch.testing.assert_close(ours, wide, atol=2e-3, rtol=2e-2)


PRODUCT = 2 * 12 * 8 * 20
"""Of matrices. The counter does not see those that are added in place: the gradient of the weight."""


@pytest.mark.parametrize(
    ("after", "products"),
    [
        (lambda losses: losses.mean(), 2),
        (lambda losses: losses.sum(), 2),
        (lambda losses: losses.dot(torch.arange(12.0)), 3),  # nobody could know: logits again, and the gradient of the weight
    ],
)
def test_rows_losses_that_are_averaged_cost_what_a_mean_costs(after, products) -> None:
    hidden, weight, _, target = inputs((12, 8, 20))
    row_weight = torch.rand(12)
    with FlopCounterMode(display=False) as counter:
        losses = linear_cross_entropy(hidden, weight, target, row_weight=row_weight, reduction="none")
        found = torch.autograd.grad(after(losses), (hidden, weight))
    assert counter.get_total_flops() == products * PRODUCT
    plain = cross_entropy(hidden @ weight.T, target, reduction="none") * row_weight
    for one, other in zip(found, torch.autograd.grad(after(plain), (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_needs_no_second_look_whatever_comes_back() -> None:
    hidden, weight, _, target = inputs((12, 8, 20))
    weight = weight.detach()
    later = torch.arange(12.0)
    with FlopCounterMode(display=False) as counter:
        losses = linear_cross_entropy(hidden, weight, target, reduction="none")
        (found,) = torch.autograd.grad(losses.dot(later), hidden)
    assert counter.get_total_flops() == 2 * PRODUCT
    plain = cross_entropy(hidden @ weight.T, target, reduction="none")
    torch.testing.assert_close(found, torch.autograd.grad(plain.dot(later), hidden)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_made_ahead_where_no_gradient_is_recorded(reduction) -> None:
    hidden, weight, _, target = inputs((12, 8, 20))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear_cross_entropy(hidden, weight, target, reduction=reduction)
    assert counter.get_total_flops() == PRODUCT


def test_choices_come_with_the_loss() -> None:
    hidden, weight, _, target = inputs((33, 8, 130))
    with torch.no_grad():
        weight[[40, 90]], hidden[3] = 10.0, 1.0  # of equals the first
    loss, choices = linear_cross_entropy_and_choices(hidden, weight, target, label_smoothing=0.1, chunk_bytes=4 * 4 * 130)
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, target, label_smoothing=0.1))
    assert torch.equal(choices, (hidden @ weight.T).argmax(1)) and choices[3] == 40
    assert not choices.requires_grad and all(part.any() for part in torch.autograd.grad(loss, (hidden, weight)))
    with pytest.raises(ValueError, match="target holds 130; accepted: 0 to 129"):
        linear_cross_entropy_and_choices(hidden, weight, target + 130 - target[0])


def test_strided_inputs() -> None:
    hidden, weight, _, target = inputs((6, 4, 9))
    expected = linear_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(linear_cross_entropy(hidden.T.contiguous().T, weight.repeat(1, 2)[:, :4], target), expected)


def test_log_probabilities() -> None:
    hidden, weight, bias, target = inputs((6, 4, 9))
    expected = (hidden @ weight.T + bias).log_softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(linear_log_prob(hidden, weight, target, bias), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.tensor([0, 9])}, "target holds 9; accepted: 0 to 4"),
        ({"target": torch.tensor([0])}, "target has shape"),
        ({"hidden": torch.zeros(2, 4)}, "hidden has shape"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"bias": torch.zeros(3)}, "bias has shape"),
        ({"row_weight": torch.zeros(3)}, "row_weight has shape"),
        ({"vocab_range": (3, 9)}, "vocab_range is"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"softcap": 0.0}, "softcap is 0.0; accepted: above 0, or None"),
        ({"softcap": float("nan")}, "softcap is nan"),
    ],
)
def test_what_does_not_fit_is_named(changes, message) -> None:
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "target": torch.tensor([0, 1]), **changes}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


@pytest.mark.unchecked
def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="reduction is 'max'; accepted: mean, sum, none"):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([0, 1]), reduction="max")


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [{}, {"scale": 0.3, "softcap": 2.0}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_in_one_graph(reduction, shape) -> None:
    hidden, weight, bias, target = inputs((9, 4, 12))
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    losses = [loss(hidden, weight, target, bias, reduction=reduction, **shape).sum() for loss in (compiled, linear_cross_entropy)]
    torch.testing.assert_close(*losses)
    for one, other in zip(*(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in losses), strict=True):
        torch.testing.assert_close(one, other)
