"""The sizes to which published models bring an image before they cut it into patches: pure functions of its size.

Sizes are (height, width) in pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from mmblocks.layers.images.pixels import check_size, rgb_of


def upright(image: PILImage.Image) -> PILImage.Image:
    """The image turned as its EXIF data has it.

    Raises:
        ValueError: an image without pixels.
    """
    check_size(image.height, image.width)
    return ImageOps.exif_transpose(image)


def upright_rgb(image: PILImage.Image) -> PILImage.Image:
    """``upright``, and in RGB. Transparency is dropped; raises what ``rgb_of`` raises, too."""
    return rgb_of(upright(image))


def smart_resize(
    height: int, width: int, *, multiple: int, min_pixels: int, max_pixels: int, max_aspect: float = 200
) -> tuple[int, int]:
    """Sides that are multiples of ``multiple``, with an area in [min_pixels, max_pixels] and about the same aspect.

    Where a very long image is already at one multiple on its short side, the area may stay above ``max_pixels``.

    Args:
        height: of the image.
        width: of the image.
        multiple: 32 in NEO, 28 in Qwen2-VL.
        min_pixels: 65536 in NEO.
        max_pixels: 4194304 in NEO.
        max_aspect: of the longer side to the shorter.

    Raises:
        ValueError: a side below one, or an aspect above ``max_aspect``.

    Source: Qwen2.5-VL (QwenLM/Qwen2.5-VL), taken over by NEO (arXiv 2510.14979; EvolvingLMMs-Lab/NEO).
    """
    check_size(height, width)
    if max(height, width) / min(height, width) > max_aspect:
        raise ValueError(f"image is {height}x{width}; accepted: a longer side of at most {max_aspect} times the shorter")
    rows, columns = (max(round(side / multiple), 1) for side in (height, width))
    area = rows * columns * multiple**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(math.floor(side / shrink / multiple), 1) for side in (height, width))
    elif area < min_pixels:
        stretch = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * stretch / multiple) for side in (height, width))
    return rows * multiple, columns * multiple


def fit_within(height: int, width: int, *, max_height: int, max_width: int) -> tuple[int, int]:
    """Shrinks to fit, keeping the aspect with sides rounded down; never enlarges. A side is at least one.

    Raises:
        ValueError: a side below one.

    Source: Fuyu's image processor (adept/fuyu-8b; huggingface/transformers).
    """
    check_size(height, width)
    if height <= max_height and width <= max_width:
        return height, width
    scale = min(max_height / height, max_width / width)
    return max(int(height * scale), 1), max(int(width * scale), 1)


def fit_area(height: int, width: int, *, multiple: int, side: int) -> tuple[int, int]:
    """An area of about ``side`` squared, with about the same aspect; each side is rounded up to a multiple. Enlarges too.

    Raises:
        ValueError: a side below one.

    Source: ``process_images`` of EVEv2 (arXiv 2502.06788; baaivision/EVE).
    """
    check_size(height, width)
    scale = math.sqrt(width * height) / side
    rows, columns = (max(math.ceil(pixels / scale / multiple), 1) for pixels in (height, width))
    return rows * multiple, columns * multiple


def fit_edges(height: int, width: int, *, multiple: int, min_side: int, max_side: int, max_pixels: int) -> tuple[int, int]:
    """Sides that are multiples of ``multiple``: a longer one of at most ``max_side``, and a shorter one of at least ``min_side``.

    The upper bound counts where an image is so long that both cannot be kept, and where there are more than ``max_pixels``. An
    image of too many pixels is shrunk by their ratio, not by its root, as upstream has it.

    Args:
        height: of the image.
        width: of the image.
        multiple: 14 for BAGEL's vision encoder, 16 for its latents.
        min_side: 224, and 512.
        max_side: 980, and 1024.
        max_pixels: 14 * 14 * 9 * 1024.

    Raises:
        ValueError: a side below one.

    Source: ``MaxLongEdgeMinShortEdgeResize`` of BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).
    """
    check_size(height, width)

    def scaled(height: int, width: int, scale: float) -> tuple[int, int]:
        rows, columns = (max(multiple, round(round(side * scale) / multiple) * multiple) for side in (height, width))
        return rows, columns

    scale = max(min(max_side / max(height, width), 1.0), min_side / min(height, width))
    height, width = scaled(height, width, scale)
    if height * width > max_pixels:
        height, width = scaled(height, width, max_pixels / (height * width))
    if max(height, width) > max_side:
        height, width = scaled(height, width, max_side / max(height, width))
    return height, width


def rgb_on_white(image: PILImage.Image) -> PILImage.Image:
    """The image in RGB, pasted on white where it is transparent, as PIL mixes colours.

    Raises:
        ValueError: an image without pixels.
    """
    check_size(image.height, image.width)
    if not image.has_transparency_data:
        return rgb_of(image)
    layered = image.convert("RGBA")
    white = PILImage.new("RGB", layered.size, (255, 255, 255))
    white.paste(layered, mask=layered.getchannel("A"))
    return white


class CanvasPlacement(NamedTuple):
    """Where an image lies on a square canvas, in pixels.

    Attributes:
        height, width: to which the image is resized.
        top, left: of its first pixel.
        side: of the canvas.
    """

    height: int
    width: int
    top: int
    left: int
    side: int


def place_on_canvas(height: int, width: int, *, side: int, cell: int, scale: int = 1) -> CanvasPlacement:
    """The longer side fills the canvas; the shorter is rounded up to whole cells and lies in the middle, also by whole cells.

    Where the cells that are left over are odd in number, the image lies nearer to the top or left.

    Args:
        height: of the image.
        width: of the image.
        side: of the teacher's canvas, a multiple of ``cell``: 336 in EVEv1.
        cell: the teacher's patch: 14.
        scale: how many times larger the model's own canvas is than the teacher's: 2, or 4 in EVE-7B-HD.

    Raises:
        ValueError: a side below one, or a canvas that is no multiple of the cell.

    Source: ``process_images`` of EVEv1 (arXiv 2406.11832; baaivision/EVE).
    """
    check_size(height, width)
    if side % cell or side <= 0 or scale < 1:
        raise ValueError(
            f"side is {side}, cell {cell}, scale {scale}; accepted: a positive multiple of the cell, a scale of 1 or more"
        )
    num_cells = side // cell
    # In this order, since it decides where the quotient is nearly whole.
    short = math.ceil(side * min(height, width) / max(height, width) / cell)
    before = (num_cells - short) // 2 * cell * scale
    long_pixels, short_pixels = side * scale, short * cell * scale
    if width > height:
        return CanvasPlacement(short_pixels, long_pixels, before, 0, long_pixels)
    return CanvasPlacement(long_pixels, short_pixels, 0, before, long_pixels)


def on_canvas(
    pixels: Float[Tensor, "3 H W"], placement: CanvasPlacement, colour: Sequence[float]
) -> tuple[Float[Tensor, "3 side side"], Float[Tensor, "side side"]]:
    """The resized image on a canvas of one colour, and the canvas's validity mask: 1 where the image lies, 0 elsewhere.

    Raises:
        ValueError: an image of another size than ``placement`` has.
    """
    height, width, top, left, side = placement
    if pixels.shape[1:] != (height, width):
        raise ValueError(f"pixels are {pixels.shape[1]}x{pixels.shape[2]}; accepted: {height}x{width}, as placed")
    canvas = pixels.new_tensor(colour)[:, None, None].repeat(1, side, side)
    mask = pixels.new_zeros(side, side)
    canvas[:, top : top + height, left : left + width] = pixels
    mask[top : top + height, left : left + width] = 1
    return canvas, mask


class Box(NamedTuple):
    """A rectangle of cells: slices of rows and columns."""

    rows: slice
    columns: slice


def valid_cells(mask: Float[Tensor, "H W"] | Bool[Tensor, "H W"], cell: int) -> Box | None:
    """The rectangle of cells that a validity mask marks; None where it marks nothing.

    Raises:
        ValueError: sides that are no multiples of ``cell``, or a mask that does not mark one rectangle of whole cells.
    """
    height, width = mask.shape
    if height % cell or width % cell:
        raise ValueError(f"mask is {height}x{width}; accepted: multiples of {cell}")
    marked = mask > 0
    rows, columns = (marked.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return None
    edges = [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]
    top, bottom, left, right = edges
    if any(edge % cell for edge in edges) or not bool(marked[top:bottom, left:right].all()):
        raise ValueError(f"mask marks no single rectangle of whole cells; accepted: one of cells of {cell}x{cell}")
    return Box(slice(top // cell, bottom // cell), slice(left // cell, right // cell))
