import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian

SHAPES = [(2, 6), (1, 5, 6), (2, 3, 5, 6), (1, 2, 3, 5, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_and_divergence_are_those_of_a_gaussian(shape) -> None:
    features = torch.randn(shape)
    latents = DiagonalGaussian().train()(features, generator=torch.Generator().manual_seed(0))
    mean, logvar = features[..., :3], features[..., 3:]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents.z, mean + (logvar / 2).exp() * noise)
    wanted = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    torch.testing.assert_close(latents.loss["kl"], wanted)


def test_noise_and_mean() -> None:
    gaussian, features = DiagonalGaussian().eval(), torch.randn(2, 4, 6)
    latents = gaussian(features, sample=False)
    assert latents.loss is None and torch.equal(latents.z, latents.mean)
    noise = torch.randn(2, 4, 3)
    drawn = gaussian(features, noise=noise).z
    assert torch.equal(drawn, latents.mean + (latents.logvar / 2).exp() * noise)


def test_variance_is_clamped() -> None:
    latents = DiagonalGaussian(logvar_range=(-2.0, 1.0))(torch.tensor([[0.0, 0.0, -50.0, 50.0]]), sample=False)
    assert latents.logvar.tolist() == [[-2.0, 1.0]]


def test_gradients_flow_through_the_draw() -> None:
    features = torch.randn(2, 4, 6, requires_grad=True)
    latents = DiagonalGaussian().train()(features)
    (latents.z.square().mean() + latents.loss["kl"]).backward()
    assert features.grad.all()


def test_bfloat16_is_computed_in_float32() -> None:
    latents = DiagonalGaussian()(torch.randn(2, 4, 6).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and latents.logvar.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    gaussian, features = DiagonalGaussian(), torch.randn(2, 4, 6)
    with pytest.raises(ValueError, match="5 wide; accepted: an even width"):
        gaussian(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"noise has shape \(2, 4, 2\); accepted: \(2, 4, 3\)"):
        gaussian(features, noise=torch.randn(2, 4, 2))
    with pytest.raises(ValueError, match="noise alone"):
        gaussian(features, noise=torch.randn(2, 4, 3), sample=False)
    with pytest.raises(ValueError, match="no codes"):
        gaussian.lookup(torch.zeros(2, dtype=torch.long))
    assert gaussian.codebook_sizes == ()


def test_saved_and_loaded(tmp_path) -> None:
    DiagonalGaussian(logvar_range=(-2.0, 1.0)).save_pretrained(tmp_path / "gaussian")
    assert Block.from_pretrained(tmp_path / "gaussian").logvar_range == (-2.0, 1.0)


def test_draws_by_itself_only_while_training() -> None:
    features = torch.randn(2, 3, 4, 8)
    gaussian = DiagonalGaussian()
    assert torch.equal(gaussian.eval()(features).z, features[..., :4])
    assert not torch.equal(gaussian.train()(features).z, features[..., :4])
    drawn = gaussian.eval()(features, generator=torch.Generator().manual_seed(0)).z
    assert not torch.equal(drawn, features[..., :4])
