"""Visual prompts: marks on an image that point a model at one thing in it, such as a sharp object before a blurred rest.

Pixels are RGB in [0, 1], (3, H, W), and stay so; what comes in is left as it is. A mask (H, W) is true where the thing is, and
comes from a segmentation model. A box is (left, top, right, bottom) in whole pixels, right and bottom not included.

Source: FGVP (arXiv 2306.04356; ylingfeng/FGVP), which scores such marks against texts with CLIP; circles: arXiv 2304.06712.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from mmblocks.layers.images.pixels import check_pixels

Box = tuple[int, int, int, int]
"""(left, top, right, bottom), in pixels."""

RED = (1.0, 0.0, 0.0)

_LUMA = (0.299, 0.587, 0.114)
"""Weights of the colours in grey (ITU-R BT.601)."""


def box_of(mask: Bool[Tensor, "H W"]) -> Box:
    """The smallest box around what a mask marks.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask that marks nothing.
    """
    _check_mask(mask)
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def crop(pixels: Float[Tensor, "3 H W"], box: Box, *, margin: int = 0) -> Float[Tensor, "3 h w"]:
    """The part of the image inside a box, and as far as there is one a margin around it.

    Args:
        pixels: in [0, 1].
        box: of the thing.
        margin: pixels that are kept on each side.

    Raises:
        TypeError, ValueError: pixels that are no RGB in [0, 1]; a box that is empty or leaves the image; a negative margin.
    """
    left, top, right, bottom = _checked_box(pixels, box)
    if margin < 0:
        raise ValueError(f"margin is {margin}; accepted: 0 or more")
    return pixels[:, max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin].clone()


def draw_box(pixels: Float[Tensor, "3 H W"], box: Box, *, colour: Sequence[float] = RED, width: int = 2) -> Float[Tensor, "3 H W"]:
    """The image with a frame just inside a box.

    Args:
        pixels: in [0, 1].
        box: of the thing.
        colour: RGB in [0, 1].
        width: of the line, in pixels.

    Raises:
        TypeError, ValueError: as ``crop``; another colour, or a line of no width.
    """
    left, top, right, bottom = _checked_box(pixels, box)
    _check_line(colour, width)
    rows, columns = _places(pixels)
    across = torch.minimum(columns - left, right - 1 - columns)
    down = torch.minimum(rows - top, bottom - 1 - rows)
    depth = torch.minimum(down, across)
    return _painted(pixels, (depth >= 0) & (depth < width), colour)


def draw_circle(
    pixels: Float[Tensor, "3 H W"], box: Box, *, colour: Sequence[float] = RED, width: int = 2
) -> Float[Tensor, "3 H W"]:
    """The image with an ellipse that touches the sides of a box from within.

    Arguments and errors as for ``draw_box``. To go round the thing rather than through its corners, hand in a larger box.
    """
    left, top, right, bottom = _checked_box(pixels, box)
    _check_line(colour, width)
    rows, columns = _places(pixels)
    down, across = rows + 0.5 - (top + bottom) / 2, columns + 0.5 - (left + right) / 2
    high, wide = (bottom - top) / 2, (right - left) / 2

    def inside(shrink: int) -> Tensor:
        if high <= shrink or wide <= shrink:
            return torch.zeros_like(down + across, dtype=torch.bool)
        return (down / (high - shrink)).square() + (across / (wide - shrink)).square() <= 1

    return _painted(pixels, inside(0) & ~inside(width), colour)


def tint_mask(
    pixels: Float[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], *, colour: Sequence[float] = RED, alpha: float = 0.5
) -> Float[Tensor, "3 H W"]:
    """The image with a colour laid over what the mask marks.

    Args:
        pixels: in [0, 1].
        mask: true where the thing is.
        colour: RGB in [0, 1].
        alpha: how much of it covers the image.

    Raises:
        TypeError, ValueError: pixels that are no RGB in [0, 1]; a mask that is not boolean, of another size, or marks nothing;
            another colour, or an alpha outside [0, 1].
    """
    _check_masked(pixels, mask)
    _check_line(colour, 1)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; accepted: [0, 1]")
    return torch.where(mask, pixels * (1 - alpha) + pixels.new_tensor(colour)[:, None, None] * alpha, pixels)


def blur_reverse_mask(pixels: Float[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], *, sigma: float = 100.0) -> Float[Tensor, "3 H W"]:
    """The image blurred wherever the mask does not mark it: the thing alone stays sharp.

    Args:
        pixels: in [0, 1].
        mask: true where the thing is.
        sigma: standard deviation of the Gaussian blur, in pixels; 100 in FGVP. The colours at the edge go on beyond it.

    Raises:
        TypeError, ValueError: pixels or a mask that do not fit, as for ``tint_mask``; a deviation that is not above 0.
    """
    _check_masked(pixels, mask)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; accepted: above 0")
    return torch.where(mask, pixels, _blurred(pixels, sigma))


def grey_reverse_mask(pixels: Float[Tensor, "3 H W"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, "3 H W"]:
    """The image without colours wherever the mask does not mark it. Errors as for ``tint_mask``."""
    _check_masked(pixels, mask)
    grey = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(dim=0).clamp(max=1)
    return torch.where(mask, pixels, grey)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """By one axis after the other, in float32; the kernel ends after three deviations."""
    radius = max(1, math.ceil(3 * sigma))
    steps = torch.arange(-radius, radius + 1, device=pixels.device, dtype=torch.float32)
    kernel = (-(steps / sigma).square() / 2).exp()
    kernel = (kernel / kernel.sum())[None, None]
    values = pixels.float()
    for _ in range(2):
        values = values.transpose(1, 2)
        lines = pad(values, (radius, radius), mode="replicate").flatten(0, 1)
        values = conv1d(lines[:, None], kernel)[:, 0].unflatten(0, values.shape[:2])
    return values.clamp(0, 1).to(pixels.dtype)


def _places(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the rows (H, 1) and of the columns (W,)."""
    return torch.arange(pixels.shape[1], device=pixels.device)[:, None], torch.arange(pixels.shape[2], device=pixels.device)


def _painted(pixels: Tensor, where: Tensor, colour: Sequence[float]) -> Tensor:
    return torch.where(where, pixels.new_tensor(colour)[:, None, None], pixels)


def _check_line(colour: Sequence[float], width: int) -> None:
    if len(colour) != 3 or not all(0 <= part <= 1 for part in colour):
        raise ValueError(f"colour is {tuple(colour)}; accepted: three numbers in [0, 1]")
    if width < 1:
        raise ValueError(f"width is {width}; accepted: at least 1 pixel")


def _checked_box(pixels: Tensor, box: Box) -> Box:
    check_pixels(pixels, num_axes=3)
    height, width = pixels.shape[1:]
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"box is {box}; accepted: (left, top, right, bottom), not empty, within an image {width} wide and {height} high"
        )
    return box


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; accepted: bool, true where the thing is (such as values > 0.5)")
    if not mask.any():
        raise ValueError("mask marks nothing; accepted: at least one pixel that is true")


def _check_masked(pixels: Tensor, mask: Tensor) -> None:
    check_pixels(pixels, num_axes=3)
    if mask.shape != pixels.shape[1:]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; accepted: {tuple(pixels.shape[1:])}, that of the image")
    _check_mask(mask)
