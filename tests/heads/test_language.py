from typing import Any

import pytest
import torch
from torch import Tensor

from mmblocks import GREEDY, LMHead, Sampling


def head() -> LMHead:
    torch.manual_seed(0)
    return LMHead(dim=8, vocab_size=11, init_std=1.0)


def test_loss_is_cross_entropy_per_row() -> None:
    hidden, target = torch.randn(5, 8), torch.tensor([0, 10, 3, 3, 7])
    logits = hidden @ head().weight.T
    wanted = -logits.log_softmax(-1)[torch.arange(5), target]
    torch.testing.assert_close(head().loss(hidden, target), wanted)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(head().loss(hidden, target, weight), wanted * weight)


SHAPED: list[dict[str, Any]] = [{"scale": 0.25}, {"softcap": 1.5}, {"bias": True}, {"scale": 2.0, "softcap": 0.7, "bias": True}]


def shaped(**options: Any) -> LMHead:
    torch.manual_seed(0)
    made = LMHead(dim=8, vocab_size=11, init_std=1.0, **options)
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


def losses_written_out(one: LMHead, hidden: Tensor, target: Tensor) -> Tensor:
    return -one.logits(hidden).log_softmax(-1)[torch.arange(len(target)), target]


def test_logits_are_scaled_and_then_capped() -> None:
    hidden, one = torch.randn(5, 8), shaped(scale=2.0, softcap=0.7, bias=True)
    plain = 2 * (hidden @ one.weight.T + one.bias)
    torch.testing.assert_close(one.logits(hidden), 0.7 * (plain / 0.7).tanh())
    torch.testing.assert_close(one.logits(hidden, 4, 9), one.logits(hidden)[:, 4:9])
    assert torch.equal(shaped(scale=2.0, softcap=30.0, bias=True).sample(hidden), plain.argmax(-1))
    torch.testing.assert_close(shaped(scale=0.25).logits(hidden), hidden @ shaped().weight.T / 4)


@pytest.mark.parametrize("options", SHAPED)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_of_shaped_logits(options, weighted) -> None:
    hidden, target = torch.randn(5, 8, requires_grad=True), torch.tensor([0, 10, 3, 3, 7])
    one, weight = shaped(**options), torch.rand(5)
    found, wanted = one.loss(hidden, target, weight if weighted else None), losses_written_out(one, hidden, target)
    wanted = wanted * weight if weighted else wanted
    torch.testing.assert_close(found, wanted)
    inputs = (hidden, *one.parameters())
    later = torch.arange(5.0)
    for mine, plain in zip(*(torch.autograd.grad(loss.dot(later), inputs) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("options", SHAPED)
def test_losses_in_half_precision_are_those_of_its_logits(options) -> None:
    one, hidden, target = shaped(**options).bfloat16(), torch.randn(5, 8).bfloat16(), torch.tensor([0, 10, 3, 3, 7])
    torch.testing.assert_close(one.loss(hidden, target), losses_written_out(one, hidden, target))
    with torch.autocast("cpu", torch.bfloat16):
        one = shaped(**options)
        loss, wanted = one.loss(hidden.float(), target), losses_written_out(one, hidden.float(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("options", SHAPED)
def test_what_shapes_logits_is_saved(options, tmp_path) -> None:
    one, hidden = shaped(**options), torch.randn(2, 8)
    one.save_pretrained(tmp_path)
    assert torch.equal(LMHead.from_pretrained(tmp_path).logits(hidden), one.logits(hidden))


@pytest.mark.parametrize(("name", "value"), [("scale", 0.0), ("scale", -1.0), ("softcap", 0.0), ("softcap", float("nan"))])
def test_factors_that_are_not_above_0_are_refused(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; accepted: above 0"):
        LMHead(dim=8, vocab_size=11, **{name: value})


def test_loss_of_no_rows_is_empty() -> None:
    assert head().loss(torch.randn(0, 8), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_loss_is_float32_in_bfloat16() -> None:
    half = head().bfloat16()
    loss = half.loss(torch.randn(3, 8).bfloat16(), torch.tensor([1, 2, 3]))
    assert loss.dtype == torch.float32 and loss.isfinite().all()


def test_gradients_are_those_of_the_logits() -> None:
    hidden, target = torch.randn(5, 8, requires_grad=True), torch.tensor([0, 10, 3, 3, 7])
    weight, one = torch.rand(5), head()
    found = torch.autograd.grad(one.loss(hidden, target, weight).sum(), (hidden, one.weight))
    losses = -one.logits(hidden).log_softmax(-1)[torch.arange(5), target]
    wanted = torch.autograd.grad((losses * weight).sum(), (hidden, one.weight))
    for mine, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_states_and_weight_as_it_does_for_logits(dtype) -> None:
    hidden, target = torch.randn(5, 8).to(dtype), torch.tensor([0, 10, 3, 3, 7])
    with torch.autocast("cpu", torch.bfloat16):
        loss = head().loss(hidden, target)
        wanted = -head().logits(hidden).log_softmax(-1)[torch.arange(5), target]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)


def test_logits_of_a_range_are_those_columns() -> None:
    hidden = torch.randn(2, 3, 8)
    torch.testing.assert_close(head().logits(hidden, 4, 9), head().logits(hidden)[..., 4:9])


def test_samples_keep_to_what_is_allowed() -> None:
    hidden = torch.randn(50, 8)
    allowed = torch.zeros(50, 11, dtype=torch.bool)
    allowed[:, [2, 5]] = True
    drawn = head().sample(hidden, sampling=Sampling(temperature=5.0), allowed=allowed)
    assert set(drawn.tolist()) == {2, 5}
    wanted = head().logits(hidden)[:, [2, 5]].argmax(-1) * 3 + 2
    assert torch.equal(head().sample(hidden, sampling=GREEDY, allowed=allowed), wanted)


@pytest.mark.unchecked
def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target has shape \(3,\); accepted: \(2,\)"):
        head().loss(torch.randn(2, 8), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"target lies in \[-100, 1\]; accepted: \[0, 10\]"):
        head().loss(torch.randn(2, 8), torch.tensor([-100, 1]))
