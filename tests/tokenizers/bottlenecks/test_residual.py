import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.residual import quantizer as residual
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer

PLAIN = {"dim": 8, "num_codes": 16, "num_quantizers": 3}


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "arguments",
    [
        PLAIN,
        {**PLAIN, "num_groups": 2, "code_dim": 5},
        {**PLAIN, "shared": True},
        {**PLAIN, "metric": "cosine"},
        {**PLAIN, "implicit": True},
        {**PLAIN, "options": {"beam_size": 3}},
    ],
)
def test_evaluation_is_the_library_s_without_its_memory(arguments, monkeypatch) -> None:
    monkeypatch.setattr(residual, "PIECE", 7)
    quantizer = ResidualQuantizer(**arguments).eval()
    x = features(2, 3, 5, 8)
    latents = quantizer(x)
    pieces = x.flatten(1, 2).chunk(len(quantizer.groups), dim=-1)
    z, ids, _ = zip(*(group(piece) for group, piece in zip(quantizer.groups, pieces, strict=True)), strict=True)
    assert torch.equal(latents.ids.flatten(1, 2), torch.cat(ids, dim=-1))
    torch.testing.assert_close(latents.z.flatten(1, 2), torch.cat(z, dim=-1))
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)
    assert quantizer.codebook_sizes == (16,) * latents.ids.shape[-1]


def test_more_quantizers_come_closer() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(**PLAIN, options={"kmeans_init": True})
    x = features(4, 50, 8)
    quantizer(x, generator=torch.Generator().manual_seed(0))
    ids = quantizer.eval()(x).ids
    one, two, three = (
        sum(group.layers[layer].codebook[ids[..., layer]] for group in quantizer.groups for layer in range(depth))
        for depth in (1, 2, 3)
    )
    assert (one - x).square().mean() > (two - x).square().mean() > (three - x).square().mean()


def test_training_moves_codes_and_gradients_reach_all() -> None:
    quantizer = ResidualQuantizer(**PLAIN, num_groups=2, code_dim=5, implicit=True)
    x = features(1, 6, 8).requires_grad_()
    latents = quantizer(x)
    (latents.z.sum() + latents.loss["commitment"]).backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in quantizer.parameters())
    averaging = ResidualQuantizer(**PLAIN)
    before = averaging.groups[0].layers[0].codebook.clone()
    averaging(features(1, 6, 8))
    assert not torch.equal(averaging.groups[0].layers[0].codebook, before)


def test_dropped_quantizers() -> None:
    quantizer = ResidualQuantizer(**PLAIN, num_groups=2, options={"quantize_dropout": True, "decay": 1.0})
    ids = torch.stack([quantizer(features(1, 4, 8), generator=torch.Generator().manual_seed(seed)).ids for seed in range(8)])
    dropped = (ids == -1).unflatten(-1, (2, 3))
    assert dropped.any() and not dropped.all() and torch.equal(dropped[..., 0, :], dropped[..., 1, :])
    assert quantizer.lookup(ids[0]).shape == (1, 4, 8)


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = ResidualQuantizer(**PLAIN, shared=True, options={"decay": 0.9}).eval()
    quantizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config
    torch.testing.assert_close(again(features(1, 2, 8)).z, quantizer(features(1, 2, 8)).z)


def test_bfloat16() -> None:
    quantizer = ResidualQuantizer(**PLAIN, code_dim=4).bfloat16().eval()
    latents = quantizer(features(1, 2, 8).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and quantizer.lookup(latents.ids).dtype == torch.bfloat16


def test_bad_input_is_refused() -> None:
    quantizer = ResidualQuantizer(**PLAIN)
    codes = quantizer.groups[0].layers[0].codebook.clone()
    with pytest.raises(ValueError, match="features are 9 wide; accepted: 8"):
        quantizer(torch.zeros(1, 2, 9))
    with pytest.raises(ValueError, match="NaN"):
        quantizer(torch.full((1, 2, 8), torch.nan))
    assert torch.equal(quantizer.groups[0].layers[0].codebook, codes)
    with pytest.raises(ValueError, match="3 numbers a token"):
        quantizer.lookup(torch.tensor([[[1, 2]]]))
    with pytest.raises(ValueError, match=r"ids lie in \[-1, 3\]"):
        quantizer.lookup(torch.tensor([[[1, 3, -1]]]))
    with pytest.raises(ValueError, match="multiples of 3, the number of groups"):
        ResidualQuantizer(**PLAIN, num_groups=3)


@pytest.mark.unchecked
def test_a_compiled_module_refuses_what_is_not_finite() -> None:
    quantizer = ResidualQuantizer(**PLAIN).train()
    step = torch.compile(quantizer, backend="eager")
    step(features(1, 6, 8))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with pytest.raises(ValueError, match="NaN"):
        step(torch.full((1, 6, 8), torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
