"""Photographs for the examples: those that scikit-image and scikit-learn bring along, and random crops of them.

The files are read from inside the installed packages; nothing is downloaded.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmblocks.layers.images.pixels import pixels_of

TRAIN = (
    *(f"skimage/data/{name}" for name in ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")),
    *(f"skimage/data/{name}" for name in ("ihc.png", "brick.png", "grass.png", "gravel.png", "coins.png")),
    "sklearn/datasets/images/flower.jpg",
)
HELD_OUT = ("skimage/data/chelsea.png", "sklearn/datasets/images/china.jpg", "skimage/data/camera.png")


def open_photo(name: str, longest: int = 640) -> Image.Image:
    """A photograph in a package, in RGB, made smaller where its longer side has more than ``longest`` pixels."""
    package, _, path = name.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed; it brings {name}: pip install 'mmblocks[demo]'")
    image = Image.open(Path(spec.origin).parent / path).convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return image


def load_photos() -> tuple[list[Tensor], list[Tensor]]:
    """Photographs (3, H, W) in [0, 1]: to learn from, at full and at half size; and held out, at full size."""
    train = [open_photo(name) for name in TRAIN]
    halves = [photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS) for photo in train]
    return [pixels_of(photo) for photo in train + halves], [pixels_of(open_photo(name)) for name in HELD_OUT]


def random_crops(photos: list[Tensor], count: int, side: int, generator: torch.Generator) -> Tensor:
    """Squares (count, 3, side, side) from anywhere, some of them mirrored, and half of them with their colours swapped."""

    def draw(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    crops = []
    for _ in range(count):
        photo = photos[draw(len(photos))]
        top, left = (draw(extent - side + 1) for extent in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side]
        crop = crop.flip(-1) if draw(2) else crop
        crops.append(crop[torch.randperm(3, generator=generator)] if draw(2) else crop)
    return torch.stack(crops)


def crops_from(step: int, photos: list[Tensor], count: int, side: int) -> Iterator[Tensor]:
    """Batches of crops from a step on, without end. A step's crops are the same however the training came there."""
    while True:
        yield random_crops(photos, count, side, torch.Generator().manual_seed(step))
        step += 1
