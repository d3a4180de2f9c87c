import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize

from mmblocks import Block
from mmblocks.tokenizers.towers.tar import TATok


def tokenizer(**options) -> TATok:
    torch.manual_seed(0)
    return TATok(
        num_codes=40, code_dim=8, image_size=70, patch_size=14, dim=24, num_layers=3, num_heads=2, mlp_dim=32,
        decoder_layers=1, decoder_heads=2, decoder_mlp_dim=32, decoder_positions=4, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("pool_scale", "side"), [(None, 5), (2, 2), (3, 1)])
def test_codes_decode_to_features_at_every_length(pool_scale, side) -> None:
    tok = tokenizer().eval()
    latents = tok.encode(torch.rand(1, 3, 70, 70), pool_scale=pool_scale)
    assert latents.ids.shape == (1, side, side)
    features = tok.decode(latents)
    assert features.shape == (1, side, side, 24)
    torch.testing.assert_close(tok.decode(latents.ids), features, atol=1e-5, rtol=1e-5)


def test_codes_on_any_grid_decode() -> None:
    assert tokenizer().decode(torch.zeros(2, 3, 5, dtype=torch.long)).shape == (2, 3, 5, 24)


def test_gradients_reach_every_parameter_that_is_used() -> None:
    tok = tokenizer(temperature=0.1).train()
    latents = tok.encode(torch.rand(2, 3, 70, 70), generator=torch.Generator().manual_seed(0))
    (tok.decode(latents).square().mean() + sum(latents.loss.values())).backward()
    learned = {name: parameter for name, parameter in tok.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in learned.items() if parameter.grad is None or not parameter.grad.abs().sum()] == []
    frozen = {name for name, _ in tok.named_parameters()} - set(learned)
    assert all(name.startswith(("encoder.vision.layers.2", "encoder.vision.norm")) or ".pool." in name for name in frozen)


def test_published_options_are_the_defaults() -> None:
    regularizer = {"codebook_size": 65536, "l2_normalized": True, "stochastic": False}
    options = {"bottleneck": {"args": {"bottleneck_dim": 1536, "regularizer": {"name": "simvq", "args": regularizer}}}}
    (layout,) = TATok.layouts
    with torch.device("meta"):
        assert TATok(**layout.arguments(options)).config == TATok().config
    with pytest.raises(ValueError, match="the vision model is 'openai/clip'"):
        layout.arguments({**options, "teacher": "openai/clip"})


@pytest.mark.parametrize(
    ("regularizer", "wanted"),
    [
        ({}, {"metric": "l2", "temperature": None}),  # as in the official class
        ({"l2_normalized": True}, {"metric": "cosine", "temperature": None}),
        ({"l2_normalized": True, "stochastic": True}, {"metric": "cosine", "temperature": 1.0}),
        ({"l2_normalized": True, "stochastic": True, "stochastic_temperature": 0.07}, {"metric": "cosine", "temperature": 0.07}),
    ],
)
def test_the_search_is_that_of_the_config(regularizer, wanted) -> None:
    bottleneck = {"bottleneck_dim": 8, "regularizer": {"name": "simvq", "args": {"codebook_size": 40, **regularizer}}}
    (layout,) = TATok.layouts
    arguments = layout.arguments({"bottleneck": {"args": bottleneck}})
    assert {name: arguments[name] for name in wanted} == wanted
    tok = tokenizer(**wanted).eval()
    pixels = torch.rand(1, 3, 70, 70)
    narrow, codes = tok.bottleneck.project_in(tok.features(pixels)), tok.bottleneck.to_codes(tok.bottleneck.anchors)
    if wanted["metric"] == "cosine":
        narrow, codes = normalize(narrow, dim=-1), normalize(codes, dim=-1)
    assert torch.equal(tok.encode(pixels).ids, torch.cdist(narrow.flatten(0, 2), codes).argmin(1).view(1, 5, 5))


def test_saved_loaded_and_in_bfloat16(tmp_path) -> None:
    tok = tokenizer().eval()
    tok.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 70, 70)
    assert torch.equal(again.decode(again.encode(pixels)), tok.decode(tok.encode(pixels)))
    half = tok.bfloat16()
    assert half.decode(half.encode(pixels.bfloat16()).ids).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    tok = tokenizer()
    with pytest.raises(ValueError, match="pixels are 70x84; accepted: 70x70 alone"):
        tok.encode(torch.zeros(1, 3, 70, 84))
    with pytest.raises(ValueError, match=r"accepted: \[0, 1\]"):
        tok.encode(torch.full((1, 3, 70, 70), -1.0))
    with pytest.raises(ValueError, match=r"accepted: \[0, 39\]"):
        tok.decode(torch.full((1, 2, 2), 40))


def test_preprocess_gives_what_encode_takes() -> None:
    tok = tokenizer()
    assert tok.encode(tok.preprocess(Image.new("RGB", (90, 50), "white"))[None]).ids.shape == (1, 5, 5)


def test_mean_and_deviation_in_tar_s_file(tmp_path) -> None:
    """They are not read, but must be those with which pixels are normalised."""
    tok = tokenizer().eval()
    tok.to_upstream(tmp_path)
    (layout,) = tok.layouts
    tensors = {key: value.contiguous() for key, value in layout.convert(tok.state_dict(), tok.config, to="theirs")}
    for scale, fits in ((0.5, True), (0.6, False)):
        extra = {"scale_layer.shift": torch.full((1, 3, 1, 1), 0.5), "scale_layer.scale": torch.full((1, 3, 1, 1), scale)}
        save_file({**tensors, **extra}, tmp_path / "model.safetensors")
        if fits:
            assert TATok.from_pretrained(tmp_path).config == tok.config
        else:
            with pytest.raises(ValueError, match=r"scale_layer\.scale differs by up to 0\.1"):
                TATok.from_pretrained(tmp_path)
