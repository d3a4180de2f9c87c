import pytest
import torch
from torch import nn

from mmblocks import Block
from mmblocks.training.adversarial import (
    LeCam,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert hinge_discriminator_loss(real, fake) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1) / 2) / 2)
    assert hinge_generator_loss(fake) == 1.5


def test_adaptive_weight_by_hand() -> None:
    """With y = w x, the losses |y - 3| and -5 y have gradients -x and -5 x."""
    weight = nn.Parameter(torch.tensor([[0.5, -0.5]]))
    x = torch.tensor([3.0, 4.0])
    y = (weight @ x).sum()
    found = adaptive_weight((y - 3).abs(), -5 * y, weight)
    assert found == pytest.approx(5 / (25 + 1e-4)) and not found.requires_grad
    assert adaptive_weight((y - 3).abs(), 0 * y, weight) == 1e4
    assert adaptive_weight(1e-3 * y, 0 * y, weight) == pytest.approx(5e-3 / 1e-4)
    y.backward()  # the graph is still there


def test_lecam_moving_averages_and_penalty() -> None:
    lecam = LeCam(decay=0.9)
    batches = [(torch.tensor([1.0, 3.0]), torch.tensor([-1.0])), (torch.tensor([0.0]), torch.tensor([-2.0, -4.0]))]
    real_average = fake_average = 0.0
    for real, fake in batches:
        lecam.update(real, fake)
        real_average = 0.9 * real_average + 0.1 * float(real.mean())
        fake_average = 0.9 * fake_average + 0.1 * float(fake.mean())
    assert lecam.real == pytest.approx(real_average) and lecam.fake == pytest.approx(fake_average)
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])
    wanted = ((1 - fake_average) ** 2 + 0) / 2 + (real_average**2 + 0) / 2
    assert lecam(real, fake) == pytest.approx(wanted)
    assert not LeCam(0.9).update(real.requires_grad_(), fake)


def test_published_discriminator() -> None:
    """Taming's for ImageNet has 2,765,633 parameters, and scores on a grid that is two short of an eighth of the sides."""
    discriminator = PatchDiscriminator()
    assert discriminator(torch.rand(1, 3, 64, 40)).shape == (1, 1, 6, 3)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633


def test_a_score_sees_its_patch_alone() -> None:
    discriminator = PatchDiscriminator(channels=4).double().eval()
    pixels = torch.rand(1, 3, 128, 96, dtype=torch.float64, requires_grad=True)
    scores = discriminator(pixels)
    scores[0, 0, 6, 4].backward()
    rows, columns = pixels.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == 70 and columns.max() - columns.min() + 1 == 70


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_smallest_images(num_layers) -> None:
    discriminator = PatchDiscriminator(channels=2, num_layers=num_layers)
    smallest = 3 * 2**num_layers
    assert discriminator(torch.rand(2, 3, smallest, smallest + 5)).shape[2] == 1
    with pytest.raises(ValueError, match=f"{smallest - 1}x64; accepted: sides of at least {smallest}"):
        discriminator(torch.rand(2, 3, smallest - 1, 64))


def test_saved_and_loaded(tmp_path) -> None:
    discriminator = PatchDiscriminator(channels=2, num_layers=1)
    discriminator(torch.rand(4, 3, 8, 8))  # moves the norms' statistics
    discriminator.eval().save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(Block.from_pretrained(tmp_path)(pixels), discriminator(pixels))
