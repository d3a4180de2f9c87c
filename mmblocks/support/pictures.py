"""Pictures as people have them: PIL images, files, bytes, arrays and tensors."""

import base64
import binascii
import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Picture: TypeAlias = Image.Image | str | Path | bytes | np.ndarray | Tensor
"""A PIL image; the path of a file, or a ``data:`` address; a file's bytes; uint8 (H, W), (H, W, 3 or 4) or (3, H, W), or floating
point (3, H, W) in [0, 1]."""

_ACCEPTED = "a PIL image, a path, a file's bytes, uint8 (H, W, 3) or (3, H, W), or floating point (3, H, W) in [0, 1]"
_BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError, EOFError)
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Of PIL: grey in 16 bits, which ``convert`` would cut off at 255."""


def picture_of(picture: Picture, name: str = "picture") -> Image.Image:
    """The picture as a PIL image, read whole.

    Args:
        picture: see ``Picture``. No address is fetched.
        name: of the argument, for messages.

    Raises:
        FileNotFoundError: no such file.
        TypeError: something else than a ``Picture``.
        ValueError: a file that is no image, or broken, or far larger than pictures are; an array of another shape or dtype.

    Examples:
        >>> import torch
        >>> from mmblocks.support.pictures import picture_of
        >>> picture_of(torch.zeros(3, 4, 6)).size
        (6, 4)
    """
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise ValueError(f"{name} is {picture.height}x{picture.width}; accepted: sides of at least one pixel")
        return picture
    if isinstance(picture, str | Path | bytes | bytearray):
        return _opened(*_source(picture, name))
    if isinstance(picture, np.ndarray):
        return _from_array(torch.from_numpy(np.ascontiguousarray(picture)), name)
    if isinstance(picture, Tensor):
        return _from_array(picture.detach().cpu(), name)
    raise TypeError(f"{name} is a {type(picture).__name__}; accepted: {_ACCEPTED}")


def rgb_of(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB, 8 bits a colour. 16 bits are rounded to 8; transparency is dropped.

    Raises:
        ValueError: an image of floats, or of integers that are no 16 bits: nothing says which value is white.
    """
    if image.mode == "F":
        raise ValueError("image has mode F, whose white is not known; accepted: any mode of integers, such as RGB, L or I;16")
    if image.mode not in _DEEP_MODES:
        return image.convert("RGB")
    levels = np.array(image).astype(np.int64)
    if levels.size and not (levels.min() >= 0 and levels.max() <= 65535):
        raise ValueError(f"image has values in [{levels.min()}, {levels.max()}]; accepted: 16 bits, [0, 65535]")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def pixels_of(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """A PIL image as RGB in [0, 1]; raises what ``rgb_of`` raises."""
    return torch.from_numpy(np.array(rgb_of(image))).permute(2, 0, 1).float() / 255


def image_of(pixels: Float[Tensor, "3 H W"]) -> Image.Image:
    """Pixels in [0, 1] as a PIL image. Values are clamped and rounded down, as in Emu3's and Chameleon's own code."""
    levels = (pixels.detach().float() * 255).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _source(picture: str | Path | bytes | bytearray, name: str) -> tuple[io.BytesIO | Path, str]:
    """What Pillow opens, and what it is called."""
    if isinstance(picture, bytes | bytearray):
        return io.BytesIO(picture), name
    text = str(picture)
    if text.startswith("data:"):
        head, _, content = text.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"{name} is a data: address that begins {head[:40]!r}; accepted: data:image/...;base64,...")
        try:
            return io.BytesIO(base64.b64decode(content, validate=True)), name
        except binascii.Error as error:
            raise ValueError(f"{name} is a data: address whose content is no base64: {error}") from error
    if "://" in text:
        raise ValueError(f"{name} is the address {text[:80]!r}; accepted: {_ACCEPTED}; nothing is fetched: download it first")
    path = Path(picture)
    if not path.is_file():
        raise FileNotFoundError(f"{name} is {text!r}: no such file")
    return path, text


def _opened(source: io.BytesIO | Path, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return image.copy()
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as an image: its format is none that Pillow knows") from error
    except _BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def _from_array(values: Tensor, name: str) -> Image.Image:
    found = f"{name} is {values.dtype} of shape {tuple(values.shape)}"
    if values.numel() == 0:
        raise ValueError(f"{found}; accepted: sides of at least one pixel")
    if values.is_floating_point() and values.ndim == 3 and values.shape[0] == 3:
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} lies in [{low:g}, {high:g}]; accepted: [0, 1]")
        return Image.fromarray((values.float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    if values.dtype == torch.uint8 and values.ndim == 2:
        return Image.fromarray(values.numpy())
    if values.dtype == torch.uint8 and values.ndim == 3 and values.shape[-1] in (3, 4):
        return Image.fromarray(values.numpy())
    if values.dtype == torch.uint8 and values.ndim == 3 and values.shape[0] in (1, 3):
        levels = values.permute(1, 2, 0).contiguous()
        return Image.fromarray((levels[..., 0] if values.shape[0] == 1 else levels).numpy())
    raise ValueError(f"{found}; accepted: {_ACCEPTED}")
