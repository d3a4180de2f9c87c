"""Images in and out of the commands."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmblocks.block import Block


def opened(file: Any, name: str, size: int | None) -> Image.Image:
    """An image in RGB, scaled and cropped to a square if asked for.

    Raises:
        ValueError: it is no image.
    """
    try:
        with Image.open(file) as image:
            found = image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    return found if size is None else ImageOps.fit(found, (size, size), Image.Resampling.BICUBIC)


def check_tokenizer(block: Block) -> Any:
    """The Block, if it has what a tokenizer has.

    Raises:
        TypeError: it has not.
    """
    if not all(hasattr(block, name) for name in ("encode", "decode", "preprocess")):
        raise TypeError(f"{type(block).__name__} is no tokenizer: it lacks encode, decode or preprocess")
    return block


@torch.no_grad()
def reconstruct(block: Block, file: Path, target: Path, size: int | None, device: torch.device) -> float:
    """Writes the image beside its reconstruction, and gives the peak signal-to-noise ratio in decibels."""
    tokenizer = check_tokenizer(block)
    pixels = tokenizer.preprocess(opened(file, str(file), size)).to(device)[None]
    again = tokenizer.decode(tokenizer.encode(pixels)).clamp(0, 1)
    error = (pixels.double() - again.double()).square().mean()
    _picture(torch.cat([pixels[0], again[0]], dim=-1)).save(target)
    return float(-10 * torch.log10(error.clamp(min=1e-12)))


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels.float().cpu() * 255).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(np.asarray(values))
