"""Files of every kind that Pillow writes, read by every embedder that prepares images: the right pixels, or a clear error."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve2 import EVE2PatchEmbedding
from mmblocks.embedders.fuyu import FuyuPatchEmbedding
from mmblocks.embedders.neo import NEOPatchEmbedding
from mmblocks.embedders.rendered_text import RenderedTextEmbedding
from mmblocks.embedders.structured import StructuredEmbedder

EVE1 = {"image_size": 32, "teacher_image_size": 16, "teacher_patch_size": 4, "patch_size": 2, "num_heads": 4}
EMBEDDERS = {
    "eve1": lambda: EVE1PatchEmbedding(dim=12, hidden_dim=16, **EVE1),
    "eve2": lambda: EVE2PatchEmbedding(dim=12, hidden_dim=8, patch_size=2, max_size=16),
    "neo": lambda: NEOPatchEmbedding(dim=12, hidden_dim=8, patch_size=2, min_pixels=64, max_pixels=1024),
    "fuyu": lambda: FuyuPatchEmbedding(dim=12, patch_size=3, max_height=24, max_width=30),
    "rendered_text": lambda: RenderedTextEmbedding(dim=12, patch_size=4),
    "structured": lambda: StructuredEmbedder(embedder=EMBEDDERS["neo"](), dim=12),
}


@pytest.fixture(params=EMBEDDERS.values(), ids=EMBEDDERS)
def embedder(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    return request.param()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """Smooth colours, red growing to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def read(embedder, image: Image.Image, path, **options) -> torch.Tensor:
    """Written to a file, read again, prepared, and embedded without complaint."""
    image.save(path, **options)
    with Image.open(path) as file:
        pixels = embedder.preprocess(file)
    assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
    embedder([pixels])
    return pixels


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("RGBA", "webp"), ("P", "gif"), ("CMYK", "tiff"), ("RGB", "bmp")])
def test_other_modes_show_the_same_picture(embedder, mode, suffix, tmp_path) -> None:
    wanted = read(embedder, photo(), tmp_path / "plain.png")
    lossless = {"lossless": True} if suffix == "webp" else {}
    made = read(embedder, photo().convert(mode), tmp_path / f"photo.{suffix}", **lossless)
    # A palette has few colours.
    torch.testing.assert_close(made, wanted, atol=0.3 if mode == "P" else 0.02, rtol=0)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_grey_is_grey_whatever_its_depth(embedder, mode, tmp_path) -> None:
    grey = photo().convert("L")
    wanted = read(embedder, grey, tmp_path / "plain.png")
    if mode == "I;16":
        grey = Image.fromarray(np.array(grey).astype(np.uint16) * 257)
        assert grey.mode == "I;16"
    elif mode == "1":
        grey = grey.point(lambda level: 255 * (level > 127), mode="1")
        wanted = read(embedder, grey.convert("L"), tmp_path / "plain.png")
    else:
        grey = grey.convert(mode)
    made = read(embedder, grey, tmp_path / "grey.png")
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=0)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_data_has_it(embedder, orientation: int, tmp_path) -> None:
    wanted = read(embedder, photo(), tmp_path / "plain.png")
    lying = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    turned = photo()
    for step in lying.get(orientation, []):
        turned = turned.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = read(embedder, turned, tmp_path / "photo.png", exif=exif)
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (40, 1), (1, 40), (200, 1), (1, 200), (400, 2), (2, 400)])
def test_thin_and_long_images_become_whole_tokens(embedder, size, tmp_path) -> None:
    pixels = read(embedder, photo(*size), tmp_path / "thin.png")
    assert len(embedder.layout(*pixels.shape[1:]).kind) == len(embedder([pixels]).kind) > 0


def test_longer_ones_are_refused_where_the_published_rule_does(tmp_path) -> None:
    with pytest.raises(ValueError, match="image is 1x201; accepted: a longer side of at most 200 times the shorter"):
        read(EMBEDDERS["neo"](), photo(201, 1), tmp_path / "thin.png")
    assert read(EMBEDDERS["eve2"](), photo(900, 1), tmp_path / "thin.png").shape == (3, 4, 480)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels_are_refused(embedder, size) -> None:
    with pytest.raises(ValueError, match=f"image is {size[1]}x{size[0]}; accepted: sides of at least one pixel"):
        embedder.preprocess(Image.new("RGB", size))


def test_floats_have_no_white(embedder, tmp_path) -> None:
    with pytest.raises(ValueError, match="image has mode F, whose white is not known"):
        read(embedder, photo().convert("F"), tmp_path / "floats.tiff")


def test_integers_beyond_sixteen_bits_are_refused(embedder, tmp_path) -> None:
    deep = Image.fromarray(np.full((4, 4), 70000, dtype=np.int32))
    assert deep.mode == "I"
    with pytest.raises(ValueError, match=r"image has values in \[70000, 70000\]; accepted: 16 bits"):
        read(embedder, deep, tmp_path / "deep.tiff")
    shallow = Image.fromarray(np.full((4, 4), 65535, dtype=np.int32))
    assert read(embedder, shallow, tmp_path / "deep.tiff").amax() == 1
