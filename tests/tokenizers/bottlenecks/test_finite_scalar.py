import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer


def features(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arguments", "dim"),
    [
        ({"levels": (8, 5, 3)}, 3),
        ({"levels": (8, 8, 8, 5, 5, 5), "dim": 16}, 16),
        ({"levels": (2, 4, 5), "symmetric": True}, 3),
        ({"levels": (7, 4), "num_numbers": 3}, 6),
        ({"levels": (4, 5), "clamp": True}, 2),
        ({"levels": (8,) * 12}, 12),  # 2^36 codes, of which no table is made
    ],
)
def test_ids_look_up_what_was_quantised(arguments, dim) -> None:
    quantizer = FiniteScalarQuantizer(**arguments).eval()
    latents = quantizer(features(2, 3, 5, dim))
    assert latents.ids.shape == (2, 3, 5, *[3] * ("num_numbers" in arguments)) and latents.loss is None
    assert latents.ids.max() < quantizer.codebook_sizes[0] and len(latents.ids.unique()) > 5
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)


@pytest.mark.parametrize("levels", [(3,), (4,), (8, 5)])
def test_every_code_is_its_own_nearest(levels) -> None:
    quantizer = FiniteScalarQuantizer(levels=levels).eval()
    ids = torch.arange(quantizer.codebook_sizes[0])[None]
    codes = quantizer.lookup(ids)
    assert codes.min() >= -1 and codes.max() <= 1 and len(codes[0].unique(dim=0)) == ids.numel()
    outermost = quantizer(torch.tensor([[[-100.0] * len(levels), [100.0] * len(levels)]])).ids
    assert outermost.tolist() == [[0, ids.numel() - 1]]


@pytest.mark.parametrize("arguments", [{"levels": [8, 5, 5, 4]}, {"levels": [2, 6, 3], "preserve_symmetry": True}])
def test_second_oracle(arguments) -> None:
    from vector_quantize_pytorch import FSQ

    quantizer = FiniteScalarQuantizer(**FiniteScalarQuantizer.layouts[0].arguments(arguments))
    x = torch.cat([features(2, 300, len(arguments["levels"])), torch.zeros(2, 1, len(arguments["levels"]))], dim=1)
    z, ids = FSQ(**arguments)(x)
    latents = quantizer(x)
    torch.testing.assert_close(latents.z, z)
    assert torch.equal(latents.ids, ids.long())


def test_gradients_reach_the_features_and_the_projections() -> None:
    x = features(2, 4, 5).requires_grad_()
    quantizer = FiniteScalarQuantizer(levels=(5, 4), dim=5)
    latents = quantizer(x)
    assert latents.loss == {}
    latents.z.square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


def test_bfloat16_has_the_ids_of_float32() -> None:
    x = features(2, 50, 2).bfloat16()
    half = FiniteScalarQuantizer(levels=(8, 5)).bfloat16()(x)
    assert half.z.dtype == torch.bfloat16
    assert torch.equal(half.ids, FiniteScalarQuantizer(levels=(8, 5))(x.float()).ids)


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = FiniteScalarQuantizer(levels=(5, 4), dim=5).eval()
    quantizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config
    torch.testing.assert_close(again(features(1, 2, 5)).z, quantizer(features(1, 2, 5)).z)


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    quantizer = FiniteScalarQuantizer(levels=(3, 4))
    with pytest.raises(ValueError, match="features are 3 wide; accepted: 2"):
        quantizer(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="NaN"):
        quantizer(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"accepted: \[0, 11\]"):
        quantizer.lookup(torch.tensor([[12]]))
    with pytest.raises(ValueError, match="3 or more each"):
        FiniteScalarQuantizer(levels=(2, 4))
    with pytest.raises(ValueError, match="2 numbers a token"):
        FiniteScalarQuantizer(levels=(3,), num_numbers=2).lookup(torch.tensor([[1]]))
    with pytest.raises(ValueError, match=r"noise_dropout is 0\.5; accepted: 0\.0"):
        FiniteScalarQuantizer.layouts[0].arguments({"levels": [3], "noise_dropout": 0.5})


@pytest.mark.unchecked
def test_compiles_to_one_graph() -> None:
    quantizer, x = FiniteScalarQuantizer(levels=(8, 5)), features(2, 5, 2)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled.ids, quantizer(x).ids)


def test_options_of_the_library_are_taken_or_refused() -> None:
    from vector_quantize_pytorch import FSQ

    arguments = FiniteScalarQuantizer.layouts[0].arguments
    plain = {"levels": [8, 5], "dim": 6}
    assert arguments({**plain, "noise_dropout": 0.0, "scale": None, "force_quantization_f32": True}) == arguments(plain)
    with pytest.raises(ValueError, match="force_quantization_f32 is False; accepted: True"):
        arguments({**plain, "force_quantization_f32": False})

    theirs = FSQ(**plain, projection_has_bias=False).eval()
    ours = FiniteScalarQuantizer(**arguments({**plain, "projection_has_bias": False})).eval()
    ours.load_state_dict(dict(ours.layouts[0].convert(theirs.state_dict(), ours.config)))
    x = features(2, 9, 6)
    torch.testing.assert_close(ours(x).z, theirs(x)[0])
