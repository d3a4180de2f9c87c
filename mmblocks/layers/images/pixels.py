"""Between PIL images, pixels in [0, 1] and a model's own normalised values."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.support.pictures import image_of as image_of
from mmblocks.support.pictures import pixels_of as pixels_of
from mmblocks.support.pictures import rgb_of as rgb_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of CLIP's training images, per colour."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's images, per colour."""

IMAGENET_STD = (0.229, 0.224, 0.225)


def check_pixels(pixels: Tensor, num_axes: int) -> None:
    """Refuses what is no RGB in [0, 1].

    Args:
        pixels: what a part was given.
        num_axes: 3 for one image (3, H, W), 4 for a batch of them, 5 for a batch of clips (B, 3, T, H, W).

    Raises:
        TypeError: if they are not floating point.
        ValueError: for another shape, or values outside [0, 1], NaN included (values are checked on CPU).
    """
    if not pixels.is_floating_point():
        raise TypeError(f"pixels are {pixels.dtype}; accepted: floating point in [0, 1] (divide uint8 by 255)")
    if pixels.ndim != num_axes or pixels.shape[min(num_axes - 3, 1)] != 3:
        shape = {3: "(3, H, W)", 4: "(B, 3, H, W)", 5: "(B, 3, T, H, W)"}[num_axes]
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; accepted: {shape}")
    if torch.compiler.is_compiling() or pixels.device.type != "cpu" or pixels.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(pixels.detach()))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"pixels lie in [{low:g}, {high:g}]; accepted: [0, 1]")


def check_some(pixels: Tensor) -> None:
    """Refuses an empty batch, for networks of libraries that cannot compute it.

    Raises:
        ValueError: no image.
    """
    if not len(pixels):
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; accepted: at least one image")


def on_white(image: PILImage.Image) -> PILImage.Image:
    """The image in RGB, on white where it is transparent; mixed colours are rounded down."""
    if not image.has_transparency_data:
        return rgb_of(image)
    values = np.array(image.convert("RGBA"))
    alpha = values[:, :, 3:] / 255.0
    return PILImage.fromarray(((1 - alpha) * 255 + alpha * values[:, :, :3]).astype(np.uint8))


def check_size(height: int, width: int) -> None:
    """Refuses an image without pixels.

    Raises:
        ValueError: a side below one.
    """
    if height < 1 or width < 1:
        raise ValueError(f"image is {height}x{width}; accepted: sides of at least one pixel")


def torchvision_square(
    image: PILImage.Image, side: int, resampling: PILImage.Resampling, *, shorter: int | None = None
) -> PILImage.Image:
    """The square in the middle, as torchvision's ``Resize(shorter)`` and then ``CenterCrop(side)`` cut it.

    The longer side is rounded down. See ``centre_square`` for the other rule.

    Args:
        image: in RGB.
        side: of the square, in pixels.
        resampling: the filter.
        shorter: what the shorter side is resized to, in pixels: at least ``side``, and ``side`` itself for None.

    Raises:
        ValueError: an image without pixels.

    Source: pytorch/vision.
    """
    check_size(image.height, image.width)
    shorter, short = side if shorter is None else shorter, min(image.size)
    image = image.resize((int(shorter * image.width / short), int(shorter * image.height / short)), resampling)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)  # of two middles the even one
    return image.crop((left, top, left + side, top + side))


def centre_square(image: PILImage.Image, side: int, resampling: PILImage.Resampling) -> PILImage.Image:
    """The square in the middle, after resizing the shorter side to ``side`` pixels: Chameleon's and guided diffusion's rule.

    The longer side is rounded to the nearest, and half pixels of the crop's place are rounded down.

    Raises:
        ValueError: an image without pixels.

    Source: facebookresearch/chameleon, openai/guided-diffusion.
    """
    check_size(image.height, image.width)
    scale = side / min(image.size)
    image = image.resize((max(round(image.width * scale), side), max(round(image.height * scale), side)), resampling)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def normalise(pixels: Float[Tensor, "*B_3_size"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "*B_3_size"]:
    """(pixels - mean) / std, per colour. Images (3, H, W), batches of them, or of clips (B, 3, T, H, W)."""
    shape = _per_colour(pixels)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def dtype_of(part: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The dtype in which a part computes, that of its first floating-point parameter; ``otherwise`` if it has none.

    Parameters of 8 bits or fewer are passed over: weights are stored in them, and nothing is computed.
    """
    dtypes = (parameter.dtype for parameter in part.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize >= 2), otherwise)


def normalised_for(
    part: nn.Module, pixels: Float[Tensor, "*B_3_size"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*B_3_size"]:
    """``normalise``, in the dtype of the part that reads it. Pixels of another dtype lose nothing before they are cast."""
    dtype = dtype_of(part, pixels.dtype)
    return normalise(widened(pixels, dtype), mean, std).to(dtype)


def widened(pixels: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Pixels that will be cast to another dtype in float32 or better, so that arithmetic before it is exact; others as they are."""
    return pixels if pixels.dtype == dtype else pixels.to(torch.promote_types(pixels.dtype, torch.float32))


def denormalise(values: Float[Tensor, "*B_3_size"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "*B_3_size"]:
    """The inverse of ``normalise``."""
    shape = _per_colour(values)
    return values * values.new_tensor(std).view(shape) + values.new_tensor(mean).view(shape)


def _per_colour(values: Tensor) -> tuple[int, ...]:
    return (3, 1, 1) if values.ndim < 5 else (3, 1, 1, 1)
