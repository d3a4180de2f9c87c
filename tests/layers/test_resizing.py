"""The rules for the sizes of images: tabled cases, and what they promise for any size."""

import pytest
import torch
from PIL import Image

from mmblocks.layers.images.resizing import fit_area, fit_within, on_canvas, place_on_canvas, smart_resize, upright_rgb, valid_cells

NEO = {"multiple": 32, "min_pixels": 65536, "max_pixels": 4194304}
SIZES = [(1, 1), (1, 200), (200, 1), (17, 3400), (480, 640), (1080, 1920), (4000, 3000), (333, 777), (10000, 51)]


@pytest.mark.parametrize("size", SIZES)
def test_smart_resize_gives_multiples_within_the_areas(size) -> None:
    height, width = smart_resize(*size, **NEO)
    assert height % 32 == width % 32 == 0
    assert 65536 <= height * width <= 4194304


@pytest.mark.parametrize("size", SIZES)
def test_smart_resize_agrees_with_transformers(size) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as published

    for multiple, least, most in [(28, 3136, 12845056), (32, 65536, 4194304), (32, 1024, 4096)]:
        if 2 * min(size) > multiple:  # below, Qwen's own rule rounds a side to nothing before it looks at the areas
            mine = smart_resize(*size, multiple=multiple, min_pixels=least, max_pixels=most)
            assert mine == tuple(published(*size, factor=multiple, min_pixels=least, max_pixels=most))


@pytest.mark.parametrize(("size", "message"), [((1, 201), "1x201; accepted: a longer side of at most 200"), ((0, 5), "0x5")])
def test_smart_resize_refuses(size, message) -> None:
    with pytest.raises(ValueError, match=message):
        smart_resize(*size, **NEO)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1080, 1920), (1080, 1920)),
        ((30, 40), (30, 40)),
        ((2160, 1920), (1080, 960)),
        ((1080, 3000), (691, 1920)),
        ((1, 9000), (1, 1920)),
        ((5000, 7), (1080, 1)),
    ],
)
def test_fit_within_shrinks_and_never_enlarges(size, wanted) -> None:
    assert fit_within(*size, max_height=1080, max_width=1920) == wanted


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((480, 640), (1408, 1856)), ((1600, 1600), (1600, 1600)), ((1, 1), (1600, 1600)), ((10, 2000), (128, 22656))],
)
def test_fit_area_brings_every_image_to_one_area(size, wanted) -> None:
    assert fit_area(*size, multiple=32, side=1600) == wanted


@pytest.mark.parametrize(
    ("size", "scale", "wanted"),
    [
        ((480, 640), 2, (504, 672, 84, 0, 672)),  # 18 of 24 cells: 3 left over before, 3 after
        ((640, 470), 2, (672, 504, 0, 84, 672)),
        ((500, 500), 2, (672, 672, 0, 0, 672)),
        ((1, 200), 2, (28, 672, 308, 0, 672)),  # 1 of 24 cells: 11 before, 12 after
        ((100, 1000), 4, (168, 1344, 560, 0, 1344)),
    ],
)
def test_a_place_on_eves_canvas(size, scale, wanted) -> None:
    assert place_on_canvas(*size, side=336, cell=14, scale=scale) == wanted


def test_the_mask_of_a_canvas_marks_the_image() -> None:
    placement = place_on_canvas(10, 40, side=16, cell=4, scale=2)
    pixels = torch.rand(3, placement.height, placement.width)
    canvas, mask = on_canvas(pixels, placement, (0.25, 0.5, 0.75))
    cells = valid_cells(mask, 4)
    assert (cells.rows, cells.columns) == (slice(2, 4), slice(0, 8))
    assert torch.equal(canvas[:, 8:16], pixels)
    assert canvas[:, 0, 0].tolist() == [0.25, 0.5, 0.75] and int(mask.sum()) == 8 * 32
    with pytest.raises(ValueError, match="pixels are 4x4; accepted: 8x32"):
        on_canvas(torch.rand(3, 4, 4), placement, (0, 0, 0))


def test_masks_that_mark_no_rectangle_of_cells_are_refused() -> None:
    assert valid_cells(torch.zeros(8, 8), 4) is None
    ragged, shifted = torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.bool)
    ragged[:4, :4] = ragged[4:, 4:] = 1
    shifted[1:5, :4] = True
    for mask in (ragged, shifted):
        with pytest.raises(ValueError, match="no single rectangle of whole cells"):
            valid_cells(mask, 4)
    with pytest.raises(ValueError, match="mask is 6x8; accepted: multiples of 4"):
        valid_cells(torch.zeros(6, 8), 4)


def test_a_canvas_needs_whole_cells() -> None:
    with pytest.raises(ValueError, match="side is 15, cell 4"):
        place_on_canvas(4, 4, side=15, cell=4)


def test_photos_are_turned_upright(tmp_path) -> None:
    photo = Image.new("RGB", (6, 4))
    photo.putpixel((0, 0), (255, 0, 0))
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    photo.save(tmp_path / "photo.png", exif=exif)
    upright = upright_rgb(Image.open(tmp_path / "photo.png"))
    assert upright.size == (4, 6) and upright.getpixel((3, 0)) == (255, 0, 0)
