import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mmblocks.training import contrastive
from mmblocks.training.contrastive import clip_loss
from tests.parity.encoders.eva_clip_loss import in_processes


def pairs(*shape, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [normalize(torch.randn(shape, dtype=dtype), dim=-1).requires_grad_() for _ in range(2)]


def plain(image, text, scale, label_smoothing=0.0) -> torch.Tensor:
    logits, labels = scale * image @ text.T, torch.arange(len(image))
    return sum(cross_entropy(side, labels, label_smoothing=label_smoothing) for side in (logits, logits.T)) / 2


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows_at_a_time", [1, 3, 100])
def test_loss_and_gradients_are_those_of_the_formula(rows_at_a_time, label_smoothing, monkeypatch) -> None:
    image, text = pairs(7, 5)
    scale = torch.tensor(9.0, requires_grad=True)
    monkeypatch.setattr(contrastive, "_CHUNK_BYTES", 4 * 7 * rows_at_a_time)
    ours = clip_loss(image, text, scale, label_smoothing=label_smoothing)
    wanted = plain(image, text, scale, label_smoothing)
    torch.testing.assert_close(ours.loss, wanted)
    for got, right in zip(*(torch.autograd.grad(2 * loss, (image, text, scale)) for loss in (ours.loss, wanted)), strict=True):
        torch.testing.assert_close(got, right)
    cosines = image @ text.T
    assert ours.image_to_text == (cosines.argmax(1) == torch.arange(7)).float().mean()
    assert ours.text_to_image == (cosines.argmax(0) == torch.arange(7)).float().mean()


def test_as_open_clip() -> None:
    from open_clip.loss import ClipLoss

    image, text = pairs(6, 4)
    torch.testing.assert_close(clip_loss(image, text, torch.tensor(5.0)).loss, ClipLoss()(image, text, torch.tensor(5.0)))


def test_a_frozen_tower_and_half_precision() -> None:
    image, text = pairs(4, 8, dtype=torch.bfloat16)
    loss = clip_loss(image, text.detach(), torch.tensor(10.0)).loss
    loss.backward()
    wanted = plain(image.float(), text.float(), 10.0)
    assert loss.dtype == torch.float32 and image.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, wanted, atol=0.05, rtol=0.05)
    with torch.no_grad():
        assert not clip_loss(image, text, torch.tensor(10.0)).loss.requires_grad


def test_several_processes_are_as_one() -> None:
    image, text = pairs(2, 3, 6)
    log_scale = torch.tensor(1.5)
    options = [{"local": local, "gather_gradients": True, "label_smoothing": 0.1} for local in (True, False)]
    one = plain(image.flatten(0, 1), text.flatten(0, 1), log_scale.exp(), 0.1)
    gradients = torch.autograd.grad(one, (image, text))
    for results in in_processes(image.detach(), text.detach(), log_scale, options):
        torch.testing.assert_close(results["loss.per_rank"].mean(), one)
        for name, wanted in zip(("image", "text"), gradients, strict=True):
            torch.testing.assert_close(results[f"grad.@{name}_features"] / 2, wanted)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("image", "text", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), {}, r"image has shape \(2, 3\), text \(3, 3\); accepted"),
        (torch.zeros(0, 3), torch.zeros(0, 3), {}, "B at least 1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"label_smoothing": 1.0}, "label_smoothing is 1.0; accepted: from 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_refused(image, text, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        clip_loss(image, text, torch.tensor(1.0), **options)
