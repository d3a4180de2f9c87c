"""What adapters of other libraries' image models share: sizes, and the buffers that no checkpoint holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def fitting_grid(height: int, width: int, stride: int, fixed: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of an image of whole strides.

    Args:
        height: of the image.
        width: of the image.
        stride: pixels a side of a place.
        fixed: the only height and width that are taken; None for any.

    Raises:
        ValueError: another size than ``fixed``, or sides that are no whole strides.
    """
    if fixed is not None and (height, width) != tuple(fixed):
        raise ValueError(f"image is {height}x{width}; accepted: {fixed[0]}x{fixed[1]} (see preprocess, and image_size)")
    if fixed is None and (height % stride or width % stride or min(height, width) < stride):
        near = "x".join(str(max(round(side / stride), 1) * stride) for side in (height, width))
        raise ValueError(f"image is {height}x{width}; accepted: multiples of {stride}, such as {near}")
    return height // stride, width // stride


def entry_of(owner: object, name: str) -> Any:
    """What another library's model or config has under a name; None where it has nothing so called: models of a library differ."""
    return getattr(owner, name, None)  # see above


def fill_buffers(model: nn.Module, build: Callable[[], nn.Module], device: torch.device) -> None:
    """Gives values to the buffers that no checkpoint holds, from the same model built anew; builds none where there are none."""
    places = [(name, module) for name, module in model.named_modules() if module._non_persistent_buffers_set]
    if not places:
        return
    with torch.device("cpu"):
        other = build()
    for name, module in places:
        values = other.get_submodule(name)
        for buffer in module._non_persistent_buffers_set:
            value = values._buffers[buffer]
            module._buffers[buffer] = None if value is None else value.to(device)
