import pytest
import torch
from PIL import Image as PILImage
from torchvision import transforms

from mmblocks import Block
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, normalise
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.roles import Encoder

SIZES = {"image_size": (28, 42), "patch_size": 14, "dim": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 37}
LARGE = {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (4, 4)}


def vision(tower=None, **options) -> EVACLIPVision:
    torch.manual_seed(0)
    return EVACLIPVision(**({"tower": SIZES | (tower or {}), "embed_dim": 10} | options)).eval()


@pytest.mark.parametrize("batch", [1, 3])
def test_features_tokens_and_embeddings(batch) -> None:
    eva = vision(feature_layer=0, feature_norm=True)
    pixels = torch.rand(batch, 3, 28, 42)
    features = eva(pixels)
    assert isinstance(eva, Encoder) and features.shape == (batch, 2, 3, 24)
    states = eva.tower.states(normalise(pixels, CLIP_MEAN, CLIP_STD), (0, -1))
    assert torch.equal(features[:, 1, 0], eva.norm(states[0])[:, 4])
    assert torch.equal(eva.tokens(pixels), states[1]) and torch.equal(eva.tokens(pixels, layer=-2), states[0])
    assert torch.equal(eva.embed(pixels), eva.head(eva.norm(states[1])[:, 0]))


def test_embeddings_of_the_mean() -> None:
    eva = vision(pooling="mean", head_bias=False)
    pixels = torch.rand(2, 3, 28, 42)
    tokens = eva.tokens(pixels)
    assert torch.equal(eva.tokens(pixels, normed=True), tokens)
    torch.testing.assert_close(eva.embed(pixels), eva.head(eva.pool_norm(tokens.mean(1))))
    assert {name.split(".")[0] for name in eva.state_dict()} == {"tower", "pool_norm", "head"} and eva.head.bias is None


def test_everything_is_trained_and_saved(tmp_path) -> None:
    eva = vision(LARGE | {"layer_scale": 0.1})
    pixels = torch.rand(2, 3, 28, 42)
    with torch.no_grad():
        eva.head.weight.mul_(1000)
    embeddings = eva.embed(pixels)
    embeddings.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in eva.parameters())
    eva.save_pretrained(tmp_path / "eva")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "eva").embed(pixels), embeddings)
    halved = Block.from_pretrained(tmp_path / "eva", dtype=torch.bfloat16)
    assert halved(pixels).dtype == torch.bfloat16  # float32 pixels will do
    torch.testing.assert_close(halved.embed(pixels).float(), embeddings, atol=0.1, rtol=0.1)


def test_a_tower_may_be_handed_in(tmp_path) -> None:
    tower = EvaTower(**SIZES).eval()
    eva = EVACLIPVision(tower=tower).eval()
    pixels = torch.rand(1, 3, 28, 42)
    eva.save_pretrained(tmp_path / "eva")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "eva")(pixels), eva(pixels))
    assert type(Block.from_pretrained(tmp_path / "eva", subfolder="tower")) is EvaTower
    with pytest.raises(ValueError, match="the tower has no head"):
        eva.embed(pixels)


def test_patches_are_dropped_while_training_alone() -> None:
    eva = vision(LARGE, patch_dropout=0.4).train()
    with torch.no_grad():
        eva.head.weight.mul_(1000)
    pixels = torch.rand(2, 3, 28, 42)

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    keep = eva.sample_patches(2, generator=drawn())
    assert keep.shape == (2, 3) and all(len(set(row)) == 3 for row in keep.tolist())
    assert torch.equal(eva.embed(pixels, generator=drawn()), eva.embed(pixels, keep=keep))
    assert eva(pixels).shape == (2, 2, 3, 24) and eva.tokens(pixels, keep=keep).shape == (2, 4, 24)
    assert torch.equal(eva.eval().embed(pixels), eva.pool(eva.tokens(pixels)))


def test_images_of_another_size() -> None:
    eva = vision(LARGE).train()
    larger = eva.resized((56, 42))
    assert larger.image_size == (56, 42) and larger.training and larger.head.weight is eva.head.weight
    assert larger(torch.rand(1, 3, 56, 42)).shape == (1, 4, 3, 24)


@pytest.mark.parametrize(("size", "seen"), [((28, 28), (28, 28)), ((28, 42), (28, 42))])
def test_preprocess(size, seen) -> None:
    eva = vision({"image_size": size})
    pixels = eva.preprocess(PILImage.new("L", (90, 50), 51))
    assert pixels.shape == (3, *seen)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.2))


@pytest.mark.parametrize(("size", "resized"), [((28, 28), 28), ((28, 42), (28, 42))])
def test_preprocess_is_the_official_one(size, resized) -> None:
    eva = vision({"image_size": size})
    resize = transforms.Resize(resized, transforms.InterpolationMode.BICUBIC)
    official = transforms.Compose([resize, transforms.CenterCrop(size), transforms.ToTensor()])
    for width, height in torch.randint(1, 120, (20, 2), generator=torch.Generator().manual_seed(0)).tolist():
        photo = transforms.functional.to_pil_image(torch.rand(3, height, width))
        assert torch.equal(eva.preprocess(photo), official(photo)), (width, height)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 28, 28), ValueError, "pixels are 28x28; accepted: 28x42"),
        (torch.zeros(1, 1, 28, 42), ValueError, r"accepted: \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 28, 42, dtype=torch.uint8), TypeError, "divide uint8 by 255"),
        (torch.full((1, 3, 28, 42), torch.nan), ValueError, r"accepted: \[0, 1\]"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        vision()(pixels)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_dropout is 1\.0; accepted: from 0 to below 1"):
        vision(patch_dropout=1.0)
