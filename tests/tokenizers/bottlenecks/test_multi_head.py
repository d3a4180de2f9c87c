import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer

HEADS = {"dim": 12, "num_codes": 20, "num_heads": 3, "code_dim": 4}


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 12, "num_codes": 20},
        {"dim": 12, "num_codes": 20, "code_dim": 3, "metric": "cosine"},
        HEADS,
        {**HEADS, "code_dim": 5, "metric": "cosine"},
        {**HEADS, "code_dim": 5, "separate_codebooks": True},
    ],
)
def test_evaluation_is_the_library_s_without_its_memory(arguments) -> None:
    quantizer = MultiHeadVectorQuantizer(**arguments).eval()
    x = features(2, 3, 5, 12)
    latents = quantizer(x)
    z, ids, _ = quantizer.quantizer(x.flatten(1, 2))
    assert torch.equal(latents.ids.flatten(1, 2), ids)
    torch.testing.assert_close(latents.z.flatten(1, 2), z)
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)
    assert latents.loss is None and len(quantizer.codebook_sizes) == arguments.get("num_heads", 1)


def test_a_learned_codebook_gets_gradients() -> None:
    quantizer = MultiHeadVectorQuantizer(**HEADS, options={"learnable_codebook": True, "ema_update": False})
    latents = quantizer(features(2, 3, 5, 12))
    (latents.z.sum() + latents.loss["commitment"]).backward()
    assert latents.ids.shape == (2, 3, 5, 3)
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


def test_randomness_comes_from_the_generator() -> None:
    quantizer = MultiHeadVectorQuantizer(dim=4, num_codes=50, options={"stochastic_sample_codes": True, "decay": 1.0})
    state = torch.get_rng_state()
    first, second = (quantizer(features(1, 30, 4), generator=torch.Generator().manual_seed(7)).ids for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, quantizer(features(1, 30, 4), generator=torch.Generator().manual_seed(8)).ids)


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = MultiHeadVectorQuantizer(**HEADS, options={"decay": 0.9}).eval()
    quantizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config
    torch.testing.assert_close(again(features(1, 2, 12)).z, quantizer(features(1, 2, 12)).z)
    again.train()(features(1, 2, 12))


def test_bad_input_is_refused() -> None:
    quantizer = MultiHeadVectorQuantizer(**HEADS)
    codes = quantizer.quantizer.codebook.clone()
    with pytest.raises(ValueError, match="features are 11 wide; accepted: 12"):
        quantizer(torch.zeros(1, 2, 11))
    with pytest.raises(ValueError, match="NaN"):
        quantizer(torch.full((1, 2, 12), torch.nan))
    assert torch.equal(quantizer.quantizer.codebook, codes)
    with pytest.raises(ValueError, match="3 numbers a token"):
        quantizer.lookup(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match=r"accepted: \[0, 19\]"):
        quantizer.lookup(torch.tensor([[1, 2, 20]]))
    with pytest.raises(ValueError, match="options hold affine_param"):
        MultiHeadVectorQuantizer(dim=4, num_codes=8, options={"affine_param": True})


@pytest.mark.unchecked
def test_a_compiled_module_refuses_what_is_not_finite() -> None:
    quantizer = MultiHeadVectorQuantizer(**HEADS).train()
    step = torch.compile(quantizer, backend="eager")
    step(features(1, 6, 12))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with pytest.raises(ValueError, match="NaN"):
        step(torch.full((1, 6, 12), torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
