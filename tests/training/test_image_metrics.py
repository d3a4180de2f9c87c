import math

import pytest
import torch

from mmblocks.training.image_metrics import CodeUsage, perplexity, psnr, ssim


def pair(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, generator=generator)
    return images, (images + 0.1 * torch.randn(size, generator=generator)).clamp(0, 1)


def test_psnr() -> None:
    images = torch.zeros(2, 3, 4, 6)
    others = torch.stack([torch.full((3, 4, 6), 0.1), torch.full((3, 4, 6), 0.5)])
    torch.testing.assert_close(psnr(images, others), torch.tensor([20.0, -10 * math.log10(0.25)]))
    assert psnr(images, images).isinf().all()


def test_ssim_is_what_scikit_image_computes() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    images, others = pair(2, 3, 20, 33)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 0}
    wanted = [
        metrics.structural_similarity(a, b, **options)
        for a, b in zip(images.double().numpy(), others.double().numpy(), strict=True)
    ]
    torch.testing.assert_close(ssim(images.double(), others.double()), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(ssim(images, others).double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=0)


def test_ssim_of_one_window_by_hand() -> None:
    """11 x 11 pixels have one place for the window: the formula in one line each."""
    images, others = (x.double() for x in pair(1, 3, 11, 11))
    place = torch.arange(-5.0, 6.0, dtype=torch.float64)
    window = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean_a, mean_b = (window * images).sum((2, 3)), (window * others).sum((2, 3))
    var_a = (window * (images - mean_a[..., None, None]) ** 2).sum((2, 3))
    var_b = (window * (others - mean_b[..., None, None]) ** 2).sum((2, 3))
    both = (window * (images - mean_a[..., None, None]) * (others - mean_b[..., None, None])).sum((2, 3))
    wanted = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    torch.testing.assert_close(ssim(images, others), wanted.mean(1))
    torch.testing.assert_close(ssim(images, images), torch.ones(1, dtype=torch.float64))


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="10x12; accepted: sides of at least 11"):
        ssim(*pair(1, 3, 10, 12))


def test_perplexity() -> None:
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert perplexity(torch.tensor([3, 1])) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert perplexity(torch.zeros(4, dtype=torch.long)) == 0


def test_usage_over_two_windows() -> None:
    usage = CodeUsage((4,), torch.device("cpu"), window=2)
    assert usage.figures() == {"usage": 0.0, "perplexity": 0.0}
    usage.add(torch.tensor([[[0, 0], [1, 1]]]))
    assert usage.figures() == {"usage": 0.5, "perplexity": pytest.approx(2)} and not usage.is_full
    usage.add(torch.tensor([[[2, 2], [2, 2]]]))
    assert usage.is_full and usage.figures()["usage"] == 0.75
    usage.roll()
    assert usage.counts[0].tolist() == [[0, 0, 0, 0], [2, 2, 4, 0]] and usage.figures()["usage"] == 0.75
    usage.roll()
    assert usage.figures()["usage"] == 0


def test_usage_of_several_codebooks_lengths_and_nothing() -> None:
    usage = CodeUsage((2, 4), torch.device("cpu"))
    usage.add(torch.tensor([[[0, 3], [1, 3], [1, 1]], [[0, -1], [1, 2], [1, 2]]]), torch.tensor([2, 1]))
    assert usage.counts[0][0].tolist() == [2, 1] and usage.counts[1][0].tolist() == [0, 0, 0, 2]
    assert usage.figures()["usage"] == pytest.approx((1 + 0.25) / 2)


def test_codebooks_too_large_to_count_are_left_out() -> None:
    usage = CodeUsage((2**40,), torch.device("cpu"))
    usage.add(torch.tensor([[2**39]]))
    assert usage.figures() == {}
