"""Sizes of grids of codes: one row (N,), an image (H, W) or a clip (T, H, W), and the places in them.

Shapes: P places, Q levels of codes.
"""

from typing import overload

import torch
from jaxtyping import Int
from torch import Tensor

AXES = {1: "N", 2: "H, W", 3: "T, H, W"}
"""How the axes of a grid are called, by their number."""


def grid_size(codes: Tensor, num_axes: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a grid of codes: its shape without the Q levels.

    Raises:
        ValueError: another number of axes, another Q, or an empty grid.
    """
    levels = (len(sizes),) if len(sizes) > 1 else ()
    size = tuple(codes.shape[:num_axes])
    if tuple(codes.shape[num_axes:]) != levels or len(size) != num_axes or 0 in size:
        names = AXES[num_axes].split(", ")
        wanted = f"({', '.join([*names, *map(str, levels)])}{',' * (num_axes == 1 and not levels)})"
        raise ValueError(f"codes has shape {tuple(codes.shape)}; accepted: {wanted} with {' and '.join(names)} at least 1")
    return size


def places_of(size: tuple[int, ...]) -> Int[Tensor, "P 3"]:
    """(t, h, w) of each place of a grid, in order; of one row of codes (0, 0, n)."""
    axes = torch.meshgrid(*(torch.arange(side) for side in three_sides(size)), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(-1, 3)


@overload
def three_sides(size: tuple[int, ...]) -> tuple[int, int, int]: ...


@overload
def three_sides(size: tuple[int | Tensor, ...]) -> tuple[int | Tensor, int | Tensor, int | Tensor]: ...


def three_sides(size: tuple[int | Tensor, ...]) -> tuple[int | Tensor, int | Tensor, int | Tensor]:
    """(frames, height, width) of a size with 1 to 3 sides."""
    frames, height, width = (1, 1, *size)[-3:]
    return frames, height, width


def axes_in_words() -> str:
    """The sizes that there are, for messages."""
    return ", ".join(f"({names})" if number > 1 else f"({names},)" for number, names in AXES.items())
