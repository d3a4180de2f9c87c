import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook


def bottleneck(**options) -> MultiCodebook:
    torch.manual_seed(0)
    return MultiCodebook(num_codebooks=3, num_codes=20, code_dim=4, **options)


def test_each_slice_has_a_codebook_of_its_own() -> None:
    quantizer = bottleneck(metric="l2").eval()
    features = torch.randn(2, 3, 5, 12)
    latents = quantizer(features)
    assert quantizer.codebook_sizes == (20, 20, 20)
    assert latents.ids.shape == (2, 3, 5, 3) and latents.loss is None
    for number, codebook in enumerate(quantizer.codebooks):
        part = features[..., 4 * number : 4 * number + 4]
        assert torch.equal(latents.ids[..., number], codebook(part).ids)
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)


def test_soft_choices_become_the_hard_ones() -> None:
    quantizer = bottleneck().eval()
    features = torch.randn(2, 7, 12)
    latents = quantizer(features)
    weights = quantizer.assign(features, temperature=1e-3)
    assert torch.equal(weights.argmax(dim=-1), latents.ids)
    torch.testing.assert_close(quantizer.mix(weights), latents.z, atol=1e-2, rtol=0)


def test_losses_reach_all_codebooks_and_the_features() -> None:
    quantizer = bottleneck(entropy_temperature=0.1).train()
    features = torch.randn(1, 6, 12, requires_grad=True)
    losses = quantizer(features).loss
    assert set(losses) == {"codebook", "commitment", "sample_entropy", "codebook_entropy"}
    sum(losses.values()).backward()
    assert all(codebook.codes.grad.abs().sum() > 0 for codebook in quantizer.codebooks)
    assert features.grad.abs().sum() > 0


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = bottleneck().eval()
    quantizer.save_pretrained(tmp_path)
    features = torch.randn(1, 4, 12)
    assert torch.equal(Block.from_pretrained(tmp_path)(features).ids, quantizer(features).ids)


def test_what_does_not_fit_is_refused() -> None:
    quantizer = bottleneck()
    with pytest.raises(ValueError, match="features are 8 wide; accepted: 12"):
        quantizer(torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match=r"2 codes a token .*; accepted: 3"):
        quantizer.lookup(torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"accepted: \[0, 19\]"):
        quantizer.lookup(torch.full((1, 2, 3), 20))
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantizer(torch.full((1, 2, 12), torch.nan))


def test_sizes_in_published_options_are_those_of_all_codebooks() -> None:
    (layout,) = MultiCodebook.layouts
    arguments = layout.arguments({"num_codebooks": 8, "vocab_size": 32768, "vocab_width": 64, "le": 0.0})
    assert arguments == layout.arguments({}) == {
        "num_codebooks": 8, "num_codes": 4096, "code_dim": 8, "entropy_temperature": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="multiples of num_codebooks, 8"):
        layout.arguments({"vocab_size": 1001})
