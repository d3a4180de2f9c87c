import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arguments", [{}, {"frozen_dim": 3, "estimator": "rotation"}])
def test_ids_look_up_what_was_quantised(arguments) -> None:
    quantizer = SimVQ(num_codes=20, dim=5, **arguments).eval()
    latents = quantizer(features(2, 3, 4, 5))
    assert latents.ids.shape == (2, 3, 4) and latents.loss is None and quantizer.codebook_sizes == (20,)
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)
    assert torch.equal(quantizer.assign(features(2, 3, 4, 5)).argmax(-1), latents.ids)


def test_the_map_learns_and_the_codebook_does_not() -> None:
    quantizer, x = SimVQ(num_codes=20, dim=5), features(2, 6, 5).requires_grad_()
    losses = quantizer(x).loss
    (to_map,) = torch.autograd.grad(losses["codebook"], quantizer.transform.weight)
    (to_features,) = torch.autograd.grad(losses["commitment"], x)
    assert to_map.abs().sum() > 0 and to_features.abs().sum() > 0
    assert [name for name, _ in quantizer.named_parameters()] == ["transform.weight"]


def test_bfloat16() -> None:
    assert SimVQ(num_codes=20, dim=5).bfloat16()(features(2, 6, 5).bfloat16()).z.dtype == torch.bfloat16


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = SimVQ(num_codes=20, dim=5).eval()
    quantizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config
    torch.testing.assert_close(again(features(1, 2, 5)).z, quantizer(features(1, 2, 5)).z)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        SimVQ(num_codes=20, dim=5)(torch.full((1, 2, 5), torch.nan))
    with pytest.raises(ValueError, match=r"accepted: \[0, 19\]"):
        SimVQ(num_codes=20, dim=5).lookup(torch.tensor([20]))
