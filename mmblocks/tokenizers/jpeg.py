"""Images as the bytes of their JPEG files: a tokenizer without weights.

Shapes: B images, H and W pixels, L bytes of the longest file.
"""

import math
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import ClassVar, NoReturn

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels, pixels_of
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import check_range
from mmblocks.support.pickling import weightless

START, END = b"\xff\xd8", b"\xff\xd9"
MAX_SIDE = 65500
"""That libjpeg writes."""

_BLOCK = {"4:4:4": (8, 8), "4:2:2": (8, 16), "4:2:0": (16, 16)}
"""Height and width of the pixels that are coded together."""

_FRAME = b"\xff\xc0"
_SIZE_AFTER_FRAME = 5
"""Marker, length and precision stand before height and width, of two bytes each."""

_MARKER = re.compile(rb"\xff([^\x00])", re.DOTALL)
"""In coded data, a byte 255 that is no marker is followed by 0."""

_ALIEN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
"""No restart marker."""

_TABLES_ALONE, _IMAGE_ALONE = 1, 2
"""Pillow's ``streamtype``."""


class JPEGTokenizer(Block):
    """An image as the bytes of its JPEG, less the tables, which are the same for all images.

    ids (B, L) are bytes, padded with zeros, and ``Latents.lengths`` says how many belong to each image. They tell the image's
    size themselves. Bytes have no vectors: ``Latents.z`` is (B, L, 0), and ``lookup`` is refused. Nothing here has gradients.

    A file that is broken off, whose header is another, or whose restart markers do not stand where they should, is refused.
    JPEG has no checksum: damage between two markers is decoded, to other pixels.

    Args:
        quality: of Pillow's encoder, 1 to 100.
        subsampling: of the colours: "4:4:4", "4:2:2" or "4:2:0".
        restart_blocks: how many blocks of pixels stand between two restart markers, which stop damage from spreading; 0 writes
            no markers, so that only a file's end can be checked.

    The defaults are JPEG-LM's, at 256 x 256 pixels. Its language model reads a byte-pair encoding of these bytes, each written as
    the character of number 10240 + byte, which is a text tokenizer's business.

    Source: JPEG-LM (arXiv 2408.08459; xhan77/jpeg-lm).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import JPEGTokenizer
        >>> tokenizer = JPEGTokenizer(quality=90)
        >>> pixels = torch.full((1, 3, 16, 24), 0.5)
        >>> latents = tokenizer.encode(pixels)
        >>> tokenizer.codebook_sizes, latents.ids.shape[1] == int(latents.lengths)
        ((256,), True)
        >>> bool((tokenizer.decode(latents.ids) - pixels).abs().max() < 0.02)
        True
    """

    codebook_sizes: ClassVar[tuple[int, ...]] = (256,)

    def __init__(self, *, quality: int = 25, subsampling: str = "4:2:0", restart_blocks: int = 1) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ValueError(f"quality is {quality}; accepted: 1 to 100")
        if subsampling not in _BLOCK:
            raise ValueError(f"subsampling is {subsampling!r}; accepted: {', '.join(_BLOCK)}")
        if not 0 <= restart_blocks <= 65535:
            raise ValueError(f"restart_blocks is {restart_blocks}; accepted: 0 to 65535")
        self.quality = quality
        self.subsampling = subsampling
        self.restart_blocks = restart_blocks

        pixel = PILImage.new("RGB", (1, 1))
        self._tables = self._file(pixel, _TABLES_ALONE)[len(START) : -len(END)]
        whole = self._file(pixel, _IMAGE_ALONE)
        scan = whole.index(b"\xff\xda")  # The header's last segment; two bytes after its marker tell its length.
        self._header = whole[: scan + 2 + int.from_bytes(whole[scan + 2 : scan + 4], "big")]
        self._size_at = self._header.index(_FRAME) + _SIZE_AFTER_FRAME

    def encode(self, pixels: Float[Tensor, "B 3 H W"] | Sequence[Float[Tensor, "3 _ _"]]) -> Latents:
        """Pixels in [0, 1], rounded to bytes, as files.

        Args:
            pixels: images of one size, or a list of images of any sizes.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, pixels outside [0, 1] (NaN included), or sides that JPEG cannot write.
        """
        if isinstance(pixels, Tensor):
            check_pixels(pixels, num_axes=4)
        if not len(pixels):
            raise ValueError("pixels holds no image; accepted: at least one")
        files = [self._file(_image(image), _IMAGE_ALONE) for image in pixels]
        lengths = torch.tensor([len(file) for file in files])
        ids = torch.zeros(len(files), int(lengths.max()), dtype=torch.long)
        for row, file in zip(ids, files, strict=True):
            row[: len(file)] = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        first = pixels[0]
        return Latents(z=first.new_zeros(*ids.shape, 0), ids=ids.to(first.device), lengths=lengths.to(first.device))

    def decode(self, latents: Latents | Int[Tensor, "B L"], *, partial: bool = False) -> Float[Tensor, "B 3 H W"]:
        """Files, or their bytes alone, to pixels in [0, 1]. What stands after an image's end is taken for padding.

        Args:
            latents: images of one size; see ``decode_each`` for others.
            partial: decode damaged files as far as they go. After damage, libjpeg goes on at the next restart marker; what is
                missing is grey. The header is replaced, so that only its first two bytes and the size have to be sound.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that are no bytes; a damaged file (without ``partial``, or in its size); images of several sizes.
        """
        images = self.decode_each(latents, partial=partial)
        sizes = sorted({tuple(image.shape[1:]) for image in images})
        if len(sizes) > 1:
            listed = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise ValueError(f"the images have several sizes, {listed}; accepted: one (decode_each takes any)")
        return torch.stack(images)

    def decode_each(self, latents: Latents | Int[Tensor, "B L"], *, partial: bool = False) -> list[Float[Tensor, "3 _ _"]]:
        """As ``decode``, for images of any sizes.

        Raises:
            TypeError, ValueError: as ``decode``.
        """
        ids = latents.ids if isinstance(latents, Latents) else latents
        lengths = latents.lengths if isinstance(latents, Latents) else None
        if ids is None or ids.ndim != 2 or not len(ids):
            shape = None if ids is None else tuple(ids.shape)
            raise ValueError(f"ids have shape {shape}; accepted: (B, L), the bytes of at least one image")
        check_range("ids", ids, 256)
        rows = ids.to("cpu", torch.uint8).numpy()
        ends = [len(row) for row in rows] if lengths is None else lengths.tolist()
        images = []
        for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
            try:
                images.append(self._pixels(row[:end].tobytes(), partial).to(ids.device))
            except ValueError as error:
                raise ValueError(f"image {number} {error}") from error
        return images

    def lookup(self, ids: Int[Tensor, "*N"]) -> NoReturn:
        """There is nothing to look up.

        Raises:
            ValueError: always.
        """
        raise ValueError("a byte of a file has no vector; accepted: decode(ids), or an embedding of your own")

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image in RGB: any size will do."""
        return pixels_of(image)

    def _file(self, image: PILImage.Image, streamtype: int) -> bytes:
        file = BytesIO()
        image.save(
            file,
            format="JPEG",
            quality=self.quality,
            subsampling=self.subsampling,
            restart_marker_blocks=self.restart_blocks,
            streamtype=streamtype,
        )
        return file.getvalue()

    def _pixels(self, file: bytes, partial: bool) -> Tensor:
        """Raises ``ValueError`` with the end of a sentence about the image."""
        height, width = self._size(file)
        header = self._header_for(height, width)
        data = file[len(header) :]
        markers = [(match.start(), match[1]) for match in _MARKER.finditer(data)]
        ends = [place for place, marker in markers if marker == END[1:]]
        if not partial:
            if not file.startswith(header):
                raise ValueError(f"has another header than a {height}x{width} image; accepted: {header.hex(' ')}")
            if not ends:
                raise ValueError(f"of {height}x{width} is broken off: its {len(file)} bytes hold no end (FF D9)")
            self._check_markers(b"".join(marker for place, marker in markers if place < ends[0]), height, width)
        data = data[: ends[0]] if ends else data
        if partial:
            data = _ALIEN.sub(b"", data).removesuffix(b"\xff")
        try:
            image = PILImage.open(BytesIO(START + self._tables + header[len(START) :] + data + END))
            return pixels_of(image)
        except OSError as error:
            raise ValueError(f"of {height}x{width} cannot be decoded: {error}") from error

    def _size(self, file: bytes) -> tuple[int, int]:
        at = self._size_at
        if len(file) < at + 4:
            raise ValueError(f"is broken off in its header: it has {len(file)} bytes; accepted: at least {len(self._header)}")
        if not file.startswith(START):
            raise ValueError(f"begins with {file[:2].hex(' ')}; accepted: {START.hex(' ')}, the start of a JPEG")
        height, width = (int.from_bytes(file[place : place + 2], "big") for place in (at, at + 2))
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or height * width > (PILImage.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"claims a size of {height}x{width}; accepted: 1 to {PILImage.MAX_IMAGE_PIXELS} pixels in all")
        return height, width

    def _header_for(self, height: int, width: int) -> bytes:
        at = self._size_at
        return self._header[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + self._header[at + 4 :]

    def _check_markers(self, found: bytes, height: int, width: int) -> None:
        rows, columns = _BLOCK[self.subsampling]
        blocks = math.ceil(height / rows) * math.ceil(width / columns)
        count = math.ceil(blocks / self.restart_blocks) - 1 if self.restart_blocks else 0
        if found != bytes(_restart_markers(count)):
            raise ValueError(
                f"of {height}x{width} is damaged: it has {len(found)} markers in its data;"
                f" accepted: {count}, which are FF D0 to FF D7 in turn"
            )


def _restart_markers(count: int) -> Iterator[int]:
    return (0xD0 + number % 8 for number in range(count))


def _image(pixels: Tensor) -> PILImage.Image:
    check_pixels(pixels, num_axes=3)
    height, width = pixels.shape[1:]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"image is {height}x{width}; accepted: sides of 1 to {MAX_SIDE}")
    levels = (pixels.detach().float() * 255).round().to("cpu", torch.uint8)
    return PILImage.fromarray(np.ascontiguousarray(rearrange(levels, "c h w -> h w c").numpy()))
