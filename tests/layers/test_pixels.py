"""Cutting the middle out of an image: held against torchvision, whose rule it is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from mmblocks.layers.images.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    centre_square,
    dtype_of,
    normalised_for,
    pixels_of,
    torchvision_square,
)

RESAMPLING = Image.Resampling
NAMES = {RESAMPLING.BILINEAR: "bilinear", RESAMPLING.BICUBIC: "bicubic", RESAMPLING.LANCZOS: "lanczos"}
DRAWN = np.random.default_rng(0)
SIZES = [  # width and height
    *[(640, 427), (427, 640), (300, 300), (256, 256), (33, 33), (47, 31), (1, 1), (1, 3), (400, 2), (2, 401), (600, 3)],
    *[tuple(int(side) for side in DRAWN.integers(1, 300, 2)) for _ in range(30)],
]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("resampling", NAMES)
@pytest.mark.parametrize(("shorter", "side"), [(72, 64), (64, 64), (63, 62), (33, 28)])
def test_a_square_is_torchvisions(shorter, side, resampling) -> None:
    mode = transforms.InterpolationMode(NAMES[resampling])
    published = transforms.Compose([transforms.Resize(shorter, mode), transforms.CenterCrop(side), transforms.ToTensor()])
    for size in SIZES:
        ours = torchvision_square(noise(*size), side, resampling, shorter=shorter)
        assert torch.equal(pixels_of(ours), published(noise(*size))), size


def test_the_shorter_side_is_the_squares_own_unless_told() -> None:
    ours, same = (torchvision_square(noise(90, 47), 30, RESAMPLING.BICUBIC, shorter=shorter) for shorter in (None, 30))
    assert ours == same


def test_the_two_rules_of_the_longer_side() -> None:
    photo = noise(640, 427)  # 256 pixels high, it would be 383.7 wide
    square, other = (rule(photo, 256, RESAMPLING.BICUBIC) for rule in (centre_square, torchvision_square))
    assert square == photo.resize((384, 256), RESAMPLING.BICUBIC).crop((64, 0, 320, 256))
    assert other == photo.resize((383, 256), RESAMPLING.BICUBIC).crop((64, 0, 320, 256))


CUTS = {
    "torchvision_square": lambda image: torchvision_square(image, 8, RESAMPLING.BICUBIC),
    "centre_square": lambda image: centre_square(image, 8, RESAMPLING.BICUBIC),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize(("size", "shape"), [((5, 0), "0x5"), ((0, 5), "5x0")])
def test_images_without_pixels_are_refused(name, size, shape) -> None:
    with pytest.raises(ValueError, match=f"image is {shape}; accepted: sides of at least one pixel"):
        CUTS[name](Image.new("RGB", size))


def test_weights_that_are_stored_in_8_bits_cast_no_pixels() -> None:
    part = nn.Linear(2, 2).bfloat16()
    part.weight = nn.Parameter(part.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    pixels = torch.rand(1, 3, 2, 2)
    assert dtype_of(part, torch.float32) == torch.bfloat16  # the bias's
    assert normalised_for(part, pixels, CLIP_MEAN, CLIP_STD).dtype == torch.bfloat16
    part.bias = None
    assert dtype_of(part, torch.float32) == torch.float32
    assert normalised_for(part, pixels, CLIP_MEAN, CLIP_STD).dtype == torch.float32
