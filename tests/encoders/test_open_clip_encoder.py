import json
import logging

import open_clip
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.cli import fitting
from mmblocks.encoders.open_clip_encoder import OpenClipEncoder
from mmblocks.layers.images.pixels import normalise
from mmblocks.roles import Encoder

TINY = {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}}
TEXT = {"context_length": 5, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
MODELS = {
    "tiny-ViT": TINY,
    "tiny-timm": {"embed_dim": 12, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 32, "timm_pool": "token"}},
    "tiny-ResNet": {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
}


@pytest.fixture(autouse=True)
def small_models(monkeypatch) -> None:
    """Names that open_clip knows for the time of a test: its own models are large."""
    for name, config in MODELS.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config | {"text_cfg": TEXT})


def encoder(name: str = "tiny-ViT", **options) -> OpenClipEncoder:
    torch.manual_seed(0)
    return OpenClipEncoder(name=name, **options).eval()


@pytest.mark.parametrize("name", MODELS)
def test_features_and_embeddings_are_those_of_open_clip(name, tmp_path) -> None:
    theirs = open_clip.create_model(name, pretrained_text=False).eval()
    ours = encoder(name, feature_layer=-2)
    ours.model.load_state_dict(theirs.visual.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    values = normalise(pixels, ours.mean, ours.std)
    seen = theirs.visual.forward_intermediates(values)["image_intermediates"]
    features = ours(pixels)
    assert isinstance(ours, Encoder) and features.shape == (2, *ours.grid_of(32, 32), ours.dim)
    torch.testing.assert_close(features, seen[-2].permute(0, 2, 3, 1))
    last, again = ours.states(pixels, (-1, -2))
    torch.testing.assert_close(last, seen[-1].permute(0, 2, 3, 1))
    torch.testing.assert_close(again, features)
    torch.testing.assert_close(ours.embed(pixels), theirs.encode_image(values))
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    torch.testing.assert_close(OpenClipEncoder.from_pretrained(tmp_path, name=name, feature_layer=-2)(pixels), features)
    ours.save_pretrained(tmp_path / "own")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "own")(pixels), features)


def test_the_final_norm_and_the_class_token() -> None:
    ours, pixels = encoder(feature_norm=True, image_size=(32, 48)), torch.rand(1, 3, 32, 48)
    tokens = ours.tokens(pixels)
    assert tokens.shape == (1, 7, 32) and ours.grid == (2, 3)
    torch.testing.assert_close(tokens[:, 1:].unflatten(1, ours.grid), ours(pixels))
    torch.testing.assert_close(tokens[:, 0] @ ours.model.proj, ours.embed(pixels))
    assert encoder("tiny-timm").tokens(torch.rand(1, 3, 32, 32)).shape[1] == 5


def test_images_are_what_the_weights_want(caplog) -> None:
    with torch.device("meta"), caplog.at_level(logging.WARNING):
        siglip = OpenClipEncoder(name="ViT-B-16-SigLIP")
        clip = OpenClipEncoder(name="ViT-B-32", weights="openai")
    assert not caplog.records
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5) and clip.mean[0] == pytest.approx(0.4815, abs=1e-4)
    picture = PILImage.linear_gradient("L").resize((448, 224))  # dark above, light below
    assert siglip.preprocess(picture).shape == clip.preprocess(picture).shape == (3, 224, 224)
    beside = PILImage.new("RGB", (448, 224))
    beside.paste((255, 255, 255), (0, 0, 112, 224))  # a quarter, which the middle leaves out
    assert siglip.preprocess(beside).mean() == pytest.approx(0.25, abs=0.01) and clip.preprocess(beside).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ViT-B-16-SigLIP", "webli"), ("ViT-B-32", "openai"), ("ViT-L-14-CLIPA", "datacomp1b"), ("MobileCLIP-B", "datacompdr")],
)
def test_images_are_resized_as_open_clip_does(name, weights) -> None:
    with torch.device("meta"):
        tower = OpenClipEncoder(name=name, weights=weights)
    wanted = {**open_clip.get_pretrained_cfg(name, weights), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    kept = {key: value for key, value in wanted.items() if key in ("mean", "std", "interpolation", "resize_mode")}
    published = open_clip.image_transform(tower.image_size, is_train=False, **kept)
    for size in [(640, 427), (50, 91), (224, 224)]:
        photo = PILImage.effect_noise(size, 90).convert("RGB")
        assert torch.equal(tower.preprocess(photo), published(photo))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encoder("ViT-B-33"), ValueError, "open_clip does not know; .* such as ViT-B-32"),
        (lambda: encoder("ViT-B-32", weights="webli"), ValueError, "weights are 'webli'; accepted of ViT-B-32: openai, "),
        (lambda: encoder(feature_layer=3), ValueError, "feature_layer is 3; accepted: from -3 to 2"),
        (lambda: encoder()(torch.zeros(1, 3, 32, 48)), ValueError, "image is 32x48; accepted: 32x32"),
        (lambda: encoder()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), TypeError, "divide uint8"),
        (lambda: encoder().states(torch.zeros(1, 3, 32, 32), ()), ValueError, r"layers are \[\]"),
        (lambda: encoder("tiny-ResNet").tokens(torch.zeros(1, 3, 32, 32)), ValueError, "has no class token"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def hub_folder(folder, name: str, **ways):
    """As open_clip pushes a model to the Hub; the config.json beside it is of transformers' conversion."""
    theirs = open_clip.create_model(name, pretrained_text=False).eval()
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], **ways}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}))
    return theirs, config


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_the_hub_says_all(name, tmp_path) -> None:
    theirs, config = hub_folder(tmp_path, name, interpolation="bilinear", resize_mode="squash")
    ours = OpenClipEncoder.from_pretrained(tmp_path)
    assert ours.name == name and (ours.mean, ours.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(ours.embed(pixels), theirs.encode_image(normalise(pixels, ours.mean, ours.std)))
    ways = {"interpolation": "bilinear", "resize_mode": "squash", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    photo = PILImage.effect_noise((64, 43), 90).convert("RGB")
    assert torch.equal(ours.preprocess(photo), open_clip.image_transform((32, 32), is_train=False, **ways)(photo))

    ours.to_upstream(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "open_clip_config.json").read_text())
    assert written == config and not (tmp_path / "again" / "config.json").exists()
    assert (tmp_path / "again" / "open_clip_model.safetensors").is_file()
    again = OpenClipEncoder.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    torch.testing.assert_close(again.embed(pixels), ours.embed(pixels))


def test_another_size_of_images_is_written_and_read(tmp_path) -> None:
    ours = encoder("tiny-ViT", image_size=(32, 48))
    ours.to_upstream(tmp_path)
    again = OpenClipEncoder.from_pretrained(tmp_path)
    assert again.image_size == (32, 48) and again.name == "tiny-ViT"
    torch.testing.assert_close(again(torch.ones(1, 3, 32, 48) / 2), ours(torch.ones(1, 3, 32, 48) / 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_cfg": TINY | {"text_cfg": TEXT, "quick_gelu": True}}, "model_cfg is of a tower that open_clip knows by no name"),
        ({"model_cfg": {**TINY, "vision_cfg": {**TINY["vision_cfg"], "of_tomorrow": 1}}}, "of_tomorrow"),
        ({"preprocess_cfg": {"fill_color": 3}}, "fill_color is 3"),
        ({"preprocess_cfg": {"rotation": 3}}, "does not know: preprocess_cfg.rotation = 3"),
    ],
)
def test_configs_that_are_not_followed_are_refused(changes, message, tmp_path) -> None:
    _, config = hub_folder(tmp_path, "tiny-ViT")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        OpenClipEncoder.from_pretrained(tmp_path)


def test_weights_that_were_trained_with_quick_gelu_have_it(monkeypatch) -> None:
    cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "quick_gelu": True}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["plain", "quick"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: cfg | {"quick_gelu": tag == "quick"})
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quick", TINY | {"text_cfg": TEXT, "quick_gelu": True})
    quick, plain, named = encoder(weights="quick"), encoder(weights="plain"), encoder("tiny-quick")
    for other in (plain, named):
        other.load_state_dict(quick.state_dict())
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(quick(pixels), named(pixels))
    assert not torch.allclose(quick(pixels), plain(pixels), atol=1e-4)


def test_the_commands_find_it_by_its_own_config_file(tmp_path) -> None:
    encoder().to_upstream(tmp_path / "published")
    assert (tmp_path / "published" / "open_clip_config.json").is_file()
    assert OpenClipEncoder in {fit.block for fit in fitting.fits(fitting.local(tmp_path / "published"))}
