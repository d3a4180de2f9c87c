import json

import pytest
import timm
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.encoders.timm_encoder import TimmEncoder
from mmblocks.layers.images.pixels import normalise
from mmblocks.roles import Encoder

NAMES = {
    "vit_tiny_patch16_224.augreg_in21k": {"image_size": (32, 48)},
    "test_vit": {"any_size": True},
    "test_convnext": {},
    "test_resnet": {},
}
"""Vision transformers of one size and of any, and convolutional networks."""


def encoder(name: str, **options) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(name=name, **(NAMES.get(name, {}) | options)).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normed", [False, True])
def test_features_are_those_of_timm(name, normed, tmp_path) -> None:
    ours = encoder(name, feature_layer=-2, feature_norm=normed and "convnext" not in name)
    pixels = torch.rand(2, 3, 32, 48 if "vit" in name else 64)
    theirs = ours.model.forward_intermediates(
        normalise(pixels, ours.mean, ours.std), norm=ours.feature_norm, intermediates_only=True
    )[-2]
    features = ours(pixels)
    assert isinstance(ours, Encoder)
    torch.testing.assert_close(features, theirs.permute(0, 2, 3, 1))
    assert features.shape == (2, *ours.grid_of(*pixels.shape[2:]), ours.dim)
    features.sum().backward()
    last, before = ours.states(pixels, (-1, -2), normed=ours.feature_norm)
    torch.testing.assert_close(before, features)
    assert last.isfinite().all()
    ours.save_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "encoder")(pixels), features)
    assert Block.from_pretrained(tmp_path / "encoder", dtype=torch.bfloat16)(pixels).dtype == torch.bfloat16


def test_the_same_numbers_as_a_model_of_timm_itself() -> None:
    name = "vit_tiny_patch16_224"
    ours = encoder(name, image_size=(32, 48))
    theirs = timm.create_model(name, img_size=(32, 48), num_classes=0).eval()
    theirs.load_state_dict(ours.model.state_dict())
    pixels = torch.rand(1, 3, 32, 48)
    seen = theirs.forward_features(normalise(pixels, ours.mean, ours.std))
    tokens = encoder(name, image_size=(32, 48), feature_norm=True).tokens(pixels)
    torch.testing.assert_close(tokens, seen)
    torch.testing.assert_close(ours.embed(pixels), theirs.forward_head(seen))
    assert ours.image_size == (32, 48) and ours.mean == tuple(theirs.pretrained_cfg["mean"])


def test_a_folder_of_the_hub(tmp_path) -> None:
    theirs = timm.create_model("test_convnext", num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    cfg = {"tag": "r160_in1k", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "num_classes": 5}
    published = {"architecture": "test_convnext", "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(published))
    ours = TimmEncoder.from_pretrained(tmp_path)
    assert ours.mean == (0.1, 0.2, 0.3) and ours.std == (1, 2, 3)
    pixels = torch.rand(1, 3, 64, 32)
    wanted = theirs.forward_intermediates(normalise(pixels, ours.mean, ours.std), intermediates_only=True)[-1]
    torch.testing.assert_close(ours(pixels), wanted.permute(0, 2, 3, 1))


def test_a_config_with_another_size() -> None:
    (layout,) = TimmEncoder.layouts
    assert layout.arguments({"architecture": "test_vit", "model_args": {"img_size": 32}}) == {
        "name": "test_vit",
        "image_size": (32, 32),
    }
    with pytest.raises(ValueError, match=r"does not know: model_args\.depth = 3"):
        layout.arguments({"architecture": "test_vit", "model_args": {"depth": 3}})
    with pytest.raises(ValueError, match=r"pretrained_cfg\.input_size is \[4, 8, 8\]; accepted: three channels"):
        layout.arguments({"architecture": "test_vit", "pretrained_cfg": {"input_size": [4, 8, 8]}})
    with pytest.raises(ValueError, match=r"does not know: pretrained_cfg\.global_pool"):
        layout.arguments({"architecture": "test_vit", "pretrained_cfg": {"global_pool": "map"}})


def test_images_are_prepared_as_the_published_config_says(tmp_path) -> None:
    theirs = timm.create_model("test_convnext", num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    cfg = {
        "tag": "of_tomorrow",
        "input_size": [3, 96, 64],
        "interpolation": "bilinear",
        "crop_pct": 0.7,
        "crop_mode": "border",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
    }
    published = {"architecture": "test_convnext", "num_classes": 5, "global_pool": "avg", "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(published))
    ours = TimmEncoder.from_pretrained(tmp_path)
    options = {"interpolation": "bilinear", "crop_pct": 0.7, "crop_mode": "border"}
    wanted = timm.data.create_transform((3, 96, 64), mean=(0.0,) * 3, std=(1.0,) * 3, **options)
    photo = PILImage.effect_noise((90, 140), 90).convert("RGB")
    assert torch.equal(ours.preprocess(photo), wanted(photo))
    old = cfg | {"architecture": "test_convnext", "num_features": 64}
    assert ours.layouts[0].arguments(old) == ours.layouts[0].arguments(published)

    ours.to_upstream(tmp_path / "again")
    again = TimmEncoder.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    pixels = torch.rand(1, 3, 64, 32)
    torch.testing.assert_close(again(pixels), ours(pixels))


@pytest.mark.parametrize("options", [{"image_size": (32, 48)}, {"any_size": True}])
def test_a_tag_is_written_in_words(options, tmp_path) -> None:
    ours = encoder("vit_tiny_patch16_224.augreg_in21k", **{"image_size": None} | options)
    ours.to_upstream(tmp_path)
    again = TimmEncoder.from_pretrained(tmp_path)
    assert again.name == "vit_tiny_patch16_224" and again.mean == ours.mean and again.ways == ours.ways
    photo = PILImage.effect_noise((90, 140), 90).convert("RGB")
    assert torch.equal(again.preprocess(photo), ours.preprocess(photo))
    theirs = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(theirs["architecture"], num_classes=0, **theirs["model_args"])
    model.load_state_dict(again.model.state_dict())


def test_tables_that_no_file_holds_are_made_anew(tmp_path) -> None:
    ours = encoder("eva02_tiny_patch14_224", image_size=(28, 42))
    pixels = torch.rand(1, 3, 28, 42)
    ours.save_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "encoder")(pixels), ours(pixels))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "convnext_atto.d2_in1k", "test_vit"])
def test_images_are_resized_as_timm_does(name) -> None:
    with torch.device("meta"):
        tower = TimmEncoder(name=name)
    wanted = timm.data.resolve_data_config(model=tower.model)
    published = timm.data.create_transform(**{**wanted, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    for size in [(640, 427), (50, 91), (224, 224)]:
        photo = PILImage.effect_noise(size, 90).convert("RGB")
        assert torch.equal(tower.preprocess(photo), published(photo))
    with pytest.raises(ValueError, match="image is 0x5; accepted: sides of at least one pixel"):
        tower.preprocess(PILImage.new("RGB", (5, 0)))


def test_preprocess() -> None:
    assert encoder("vit_tiny_patch16_224.augreg_in21k").preprocess(PILImage.new("L", (90, 50), 51)).shape == (3, 32, 48)
    assert encoder("test_resnet").preprocess(PILImage.new("L", (90, 50), 51)).shape == (3, 160, 160)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TimmEncoder(name="vit_tini_patch16_224"), ValueError, "timm does not know; .* such as vit_tiny_patch16_224"),
        (lambda: TimmEncoder(name="test_vit.nobody"), ValueError, "name is 'test_vit.nobody'"),
        (lambda: TimmEncoder(name="test_vit", feature_layer=9), ValueError, "feature_layer is 9; accepted: from -"),
        (lambda: TimmEncoder(name="test_resnet", any_size=True), ValueError, "accepted of test_resnet: neither"),
        (lambda: encoder("test_resnet").states(torch.zeros(1, 3, 32, 32), (7,)), ValueError, r"layers are \[7\]"),
        (lambda: encoder("test_resnet")(torch.zeros(1, 3, 40, 64)), ValueError, "image is 40x64; accepted: multiples of 32"),
        (
            lambda: encoder("vit_tiny_patch16_224.augreg_in21k")(torch.zeros(1, 3, 32, 32)),
            ValueError,
            "image is 32x32; accepted: 32x48",
        ),
        (lambda: encoder("test_resnet")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), TypeError, "divide uint8"),
        (lambda: encoder("test_resnet").tokens(torch.zeros(1, 3, 32, 32)), ValueError, "has no class token"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
