import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

from mmblocks.training import siglip as module
from mmblocks.training.siglip import siglip_loss
from tests.training.processes import in_processes


def inputs(count: int = 6, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    pairs = [normalize(torch.randn(count, 5, dtype=dtype), dim=-1) for _ in range(2)]
    return [value.requires_grad_() for value in (*pairs, torch.tensor(9.0), torch.tensor(-3.0))]


def plain(image, text, scale, bias) -> torch.Tensor:
    truth = 2 * torch.eye(len(image)) - 1
    return -logsigmoid(truth * (scale * image @ text.T + bias)).sum() / len(image)


@pytest.mark.parametrize("rows_at_a_time", [1, 4, 100])
def test_loss_and_gradients_are_those_of_the_formula(rows_at_a_time, monkeypatch) -> None:
    values = inputs()
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 6 * rows_at_a_time)
    ours, wanted = siglip_loss(*values), plain(*values)
    torch.testing.assert_close(ours, wanted)
    for got, right in zip(*(torch.autograd.grad(2 * loss, values) for loss in (ours, wanted)), strict=True):
        torch.testing.assert_close(got, right)


def test_as_open_clip() -> None:
    from open_clip.loss import SigLipLoss

    values = inputs()
    torch.testing.assert_close(siglip_loss(*values), SigLipLoss()(*values))


def test_several_processes_are_as_one() -> None:
    values = inputs()
    one = plain(*values)
    loss, gradients = in_processes(siglip_loss, *values)
    torch.testing.assert_close(loss, one.detach())
    for got, right in zip(gradients, torch.autograd.grad(one, values), strict=True):
        torch.testing.assert_close(got, right)


def test_half_precision_and_a_frozen_tower() -> None:
    image, text, scale, bias = inputs(dtype=torch.bfloat16)
    loss = siglip_loss(image, text.detach(), scale, bias)
    loss.backward()
    assert loss.dtype == torch.float32 and image.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, plain(image.float(), text.float(), scale, bias), atol=0.1, rtol=0.05)
    with torch.no_grad():
        assert not siglip_loss(image, text, scale, bias).requires_grad


@pytest.mark.unchecked
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image has shape \(2, 3\), text \(3, 3\); accepted"):
        siglip_loss(torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor(1.0), torch.tensor(0.0))
