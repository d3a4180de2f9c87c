import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer


def bottleneck(**options) -> TextAlignedQuantizer:
    torch.manual_seed(0)
    return TextAlignedQuantizer(num_codes=40, code_dim=8, in_dim=12, out_dim=10, **options)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_codes_are_the_nearest_of_the_mapped_vectors(metric) -> None:
    quantizer = bottleneck(metric=metric).eval()
    features = torch.randn(2, 3, 5, 12)
    latents = quantizer(features)
    wanted = torch.cdist(latents.features.flatten(0, 2), quantizer.vectors).argmin(dim=1).view(2, 3, 5)
    assert torch.equal(latents.ids, wanted) and latents.loss is None
    assert latents.z.shape == (2, 3, 5, 10)
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)
    soft = quantizer.assign(features, temperature=1e-4)
    torch.testing.assert_close(quantizer.mix(soft), latents.z, atol=1e-2, rtol=0)


def test_training_draws_what_the_noise_says() -> None:
    quantizer = bottleneck(temperature=0.5).train()
    features = torch.randn(1, 50, 12)
    gumbel = -torch.empty(1, 50, 40).exponential_(generator=torch.Generator().manual_seed(1)).log()
    drawn = quantizer(features, gumbel=gumbel).ids
    assert torch.equal(drawn, (quantizer.assign(features, 0.5).log() + gumbel).argmax(dim=-1))
    seeded = [quantizer(features, generator=torch.Generator().manual_seed(2)).ids for _ in range(2)]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], drawn)
    nearest = quantizer.eval()(features).ids
    assert not torch.equal(nearest, drawn) and torch.equal(nearest, quantizer(features).ids)


def test_losses_reach_every_parameter() -> None:
    quantizer = bottleneck(temperature=0.1).train()
    latents = quantizer(torch.randn(2, 9, 12))
    (latents.z.square().mean() + latents.loss["codebook"] + latents.loss["commitment"]).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = bottleneck(temperature=0.07).eval()
    quantizer.save_pretrained(tmp_path)
    features = torch.randn(1, 4, 12)
    assert torch.equal(Block.from_pretrained(tmp_path)(features).z, quantizer(features).z)


def test_what_does_not_fit_is_refused() -> None:
    for options in ({"temperature": 0.0}, {"temperature": 0.1, "metric": "l2"}):
        with pytest.raises(ValueError, match="accepted: None, or above 0 with metric 'cosine'"):
            bottleneck(**options)
    with pytest.raises(ValueError, match="draws nothing"):
        bottleneck()(torch.zeros(1, 2, 12), generator=torch.Generator())
    with pytest.raises(ValueError, match=r"accepted: \[0, 39\]"):
        bottleneck().lookup(torch.tensor([[40]]))
