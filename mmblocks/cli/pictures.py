"""Images in and out of the commands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.pixels import rgb_of
from mmblocks.roles import Preprocessing, Tokenizer

UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError, EOFError)
"""What Pillow raises for files that are no images, or broken ones."""


@runtime_checkable
class ImageTokenizer(Tokenizer, Preprocessing, Protocol):
    """A tokenizer of image files."""


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Errors of Pillow's become a ``ValueError`` that names the file."""
    try:
        yield
    except UnidentifiedImageError as error:  # says nothing but where in memory the bytes were
        raise ValueError(f"{name} cannot be read as an image: its format is none that Pillow knows") from error
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def opened(file: Path | BytesIO, name: str, size: int | None) -> Image.Image:
    """An image in RGB, scaled and cropped to a square if asked for.

    Raises:
        ValueError: it is no image.
    """
    with readable(name), Image.open(file) as image:
        return fitted(image, size)


def fitted(image: Image.Image, size: int | None) -> Image.Image:
    """In RGB, scaled and cropped to a square if asked for."""
    found = rgb_of(image)
    return found if size is None else ImageOps.fit(found, (size, size), Image.Resampling.BICUBIC)


def check_places(file: Path, target: Path) -> None:
    """Refuses a file that is none, and a target that cannot be written, before anything is loaded.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file, or no folder for the target.
        ValueError: a target whose ending is that of no image.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; accepted: an image")
    if not file.exists():
        raise FileNotFoundError(f"no such file: {file}; accepted: an image")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} to")
    Image.init()
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE]
    if target.suffix.lower() not in endings:
        raise ValueError(f"{target} has the ending {target.suffix!r}; accepted: that of an image, such as .png")


def check_tokenizer(block: Block) -> ImageTokenizer:
    """The Block, if it has what a tokenizer has.

    Raises:
        TypeError: it has not.
    """
    if not isinstance(block, ImageTokenizer):
        raise TypeError(f"{type(block).__name__} is no tokenizer: it lacks encode, decode or preprocess")
    return block


@torch.no_grad()
def reconstruct(block: Block, file: Path, target: Path, size: int | None, device: torch.device) -> float:
    """Writes the image beside its reconstruction, and gives the peak signal-to-noise ratio in decibels."""
    tokenizer = check_tokenizer(block)
    pixels = tokenizer.preprocess(opened(file, str(file), size)).to(device)[None]
    again = tokenizer.decode(tokenizer.encode(pixels)).clamp(0, 1)
    error = (pixels.double() - again.double()).square().mean()
    save(_picture(torch.cat([pixels[0], again[0]], dim=-1)), target)
    return float(-10 * torch.log10(error.clamp(min=1e-12)))


def save(picture: Image.Image, target: Path) -> None:
    """Writes a picture in one step: a file of that name is whole, or not there."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            picture.save(file, format=Image.registered_extensions()[target.suffix.lower()])
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels.float().cpu() * 255).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(np.asarray(values))
