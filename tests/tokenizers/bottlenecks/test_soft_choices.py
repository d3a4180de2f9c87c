"""Soft choices of bottlenecks whose codes are no plain table: they agree with the hard ones, and let gradients through."""

import pytest
import torch

from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck

MAKERS = {
    "bits": lambda: LookupFreeQuantizer(bits=(5,)),
    "bits, most first, on a sphere": lambda: LookupFreeQuantizer(bits=(4, 4), first_bit="most", spherical=True, scale=2.0),
    "bits, projected and squashed": lambda: LookupFreeQuantizer(bits=(4,), dim=6, soft_clamp=2.0),
    "levels": lambda: FiniteScalarQuantizer(levels=(4, 3, 5)),
    "levels, symmetric, two numbers": lambda: FiniteScalarQuantizer(levels=(4, 2), num_numbers=2, symmetric=True),
    "levels, projected and clamped": lambda: FiniteScalarQuantizer(levels=(5, 4), dim=3, clamp=True),
    "depths": lambda: RQBottleneck(num_codes=12, dim=4, depth=3),
    "depths, one codebook, merged": lambda: JointRQBottleneck(num_codes=12, dim=4, depth=2, shared=True, merge=(2, 1)),
}


def bottleneck(name: str):
    torch.manual_seed(0)
    return MAKERS[name]().eval()


@pytest.mark.parametrize("name", MAKERS)
def test_the_likeliest_code_is_the_chosen_one(name) -> None:
    quantizer = bottleneck(name)
    features = torch.randn(2, 4, 3, quantizer.dim)
    chosen, weights = quantizer(features), quantizer.assign(features, 0.7)
    assert torch.equal(weights.argmax(dim=-1), chosen.ids)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(chosen.ids.shape))
    sharp = torch.nn.functional.one_hot(chosen.ids, weights.shape[-1]).float()
    torch.testing.assert_close(quantizer.mix(sharp), quantizer.lookup(chosen.ids))


@pytest.mark.parametrize("name", MAKERS)
def test_smaller_temperatures_are_sharper_and_gradients_pass(name) -> None:
    quantizer = bottleneck(name)
    features = torch.randn(1, 2, 2, quantizer.dim, requires_grad=True)
    soft, sharp = (quantizer.assign(features, temperature).amax(dim=-1).mean() for temperature in (1.0, 0.1))
    assert soft < sharp
    quantizer.mix(quantizer.assign(features)).square().sum().backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum() > 0


def test_the_entropy_is_the_losss_own() -> None:
    quantizer = LookupFreeQuantizer(bits=(6,), temperature=0.5).train()
    features = torch.randn(1, 3, 3, 6)
    weights = quantizer.assign(features, quantizer.temperature)
    entropy = -(weights * weights.log()).sum(dim=-1).mean()
    torch.testing.assert_close(quantizer(features).loss["sample_entropy"], entropy, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "quantizer",
    [LookupFreeQuantizer(bits=(2, 3)), RQBottleneck(num_codes=(4, 6), dim=5, depth=2)],
    ids=["bits", "depths"],
)
def test_codebooks_of_different_sizes_are_refused(quantizer) -> None:
    with pytest.raises(ValueError, match=r"accepted.*: as many (for )?each"):
        quantizer.assign(torch.randn(1, 2, 2, 5))


@pytest.mark.unchecked
@pytest.mark.parametrize("name", MAKERS)
def test_weights_of_another_shape_are_refused(name) -> None:
    quantizer = bottleneck(name)
    weights = quantizer.assign(torch.randn(1, 2, 2, quantizer.dim))
    with pytest.raises(ValueError, match=r"weights have shape .*; accepted"):
        quantizer.mix(weights[..., :-1])
