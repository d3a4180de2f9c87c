"""What ``tokenize`` finds in a folder: images, or clips, as files of their own or in .tar shards."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from PIL import Image, ImageSequence

from mmblocks.cli import pictures

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOVING = (".gif", ".webp")
"""Images that may move: each is a clip then."""

MOST_PIXELS = 2**31
"""Of all frames of an image that moves; a few kilobytes can hold thousands of empty ones."""

_DIGITS = re.compile(r"(\d+)")


class _File(NamedTuple):
    """Bytes of a file: all of them, or those of a member of a .tar file.

    Attributes:
        name: relative to the folder, with that of the .tar file before the member's.
        offset: where the member begins; None for a file of its own.
    """

    name: str
    path: Path
    size: int
    offset: int | None = None

    def read(self) -> io.BytesIO:
        with self.path.open("rb") as content:
            content.seek(self.offset or 0)
            return io.BytesIO(content.read(self.size))


class Sample(NamedTuple):
    """An image, or the frames of a clip.

    Attributes:
        name: of the tokens.
        files: one, or one a frame.
        is_clip: whether there is an axis of time, be it one frame long.
    """

    name: str
    files: tuple[_File, ...]
    is_clip: bool

    @property
    def mark(self) -> list[object]:
        """What changes when the sample does."""
        return [self.name, self.is_clip, [[file.name, file.size] for file in self.files]]

    def images(self, size: int | None) -> list[Image.Image]:
        """The image, or the frames in their order, in RGB.

        Raises:
            ValueError: a file that is no image; the message names it.
        """
        if self.is_clip and len(self.files) == 1:
            return list(_frames(self.files[0], size))
        return [pictures.opened(file.read(), file.name, size) for file in self.files]


def images(path: Path) -> list[Sample]:
    """Every image by itself, sorted by name; of one that moves the first frame."""
    return [Sample(file.name, (file,), is_clip=False) for file in _files(path)]


def clips(path: Path) -> list[Sample]:
    """Clips, sorted by name.

    Each image that moves is one. So are the images of a folder, as frames, in the order of the numbers in their names; a .tar file
    is a folder here. Names such as ``a.000.png`` and ``a.001.png`` in a .tar file are the sample ``a``, as webdataset has it.
    """
    frames: dict[str, list[_File]] = {}
    for file in _files(path):
        frames.setdefault(file.name if _moves(file) else _clip_of(file), []).append(file)
    return [
        Sample(name or path.name, tuple(sorted(found, key=_by_numbers)), is_clip=True) for name, found in sorted(frames.items())
    ]


def _files(path: Path) -> Iterator[_File]:
    if path.is_file():
        yield from _members(path, path.parent)
        return
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in IMAGES and file.is_file():
            yield _File(file.relative_to(path).as_posix(), file, file.stat().st_size)
        elif file.suffix == ".tar":
            yield from _members(file, path)


def _members(tar: Path, root: Path) -> Iterator[_File]:
    try:
        with tarfile.open(tar, "r:", tarinfo=_Header) as archive:  # not compressed, so that members can be read where they are
            members = list(_forward(archive, tar.stat().st_size))
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValueError(f"{tar} cannot be read as a .tar file: {error}") from error
    for member in members:
        if member.name.lower().endswith(IMAGES):
            yield _File(f"{tar.relative_to(root).as_posix()}/{member.name}", tar, member.size, member.offset_data)


class _Header(tarfile.TarInfo):
    """Refuses a negative size, which leads back to where it was read, and so for ever."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A member from its header; see ``tarfile``."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise ValueError(f"{header.name!r:.200} is said to have {header.size} bytes")
        return header


def _forward(archive: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The files in an archive of ``size`` bytes. Sizes are checked once more, for an extended header may give others."""
    previous = 0
    for member in archive:
        # A sparse file has fewer bytes in the archive than its size says.
        is_plain = member.isreg() and not member.issparse()
        if member.offset < previous or member.size < 0 or member.offset_data + (member.size if is_plain else 0) > size:
            raise ValueError(f"{member.name!r:.200} is said to have {member.size} bytes, which are not there")
        previous = member.offset_data
        if is_plain:
            yield member
    with open(str(archive.name), "rb") as content:  # tarfile takes a broken header for the end, which is a block of zeros
        content.seek(archive.offset)
        if content.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ValueError(f"what stands at byte {archive.offset} is no header")


def _clip_of(file: _File) -> str:
    """Empty for the images of the outermost folder itself."""
    place = PurePosixPath(file.name)
    folder = "" if str(place.parent) == "." else str(place.parent)
    key, _, rest = place.name.partition(".")
    is_webdataset = file.offset is not None and "." in rest
    return f"{folder}/{key}" if is_webdataset else folder


def _moves(file: _File) -> bool:
    if not file.name.lower().endswith(MOVING):
        return False
    try:
        with Image.open(file.read()) as image:
            return bool(getattr(image, "is_animated", False))  # formats of one image have none
    except pictures.UNREADABLE:  # is reported when its turn comes
        return False


def _frames(file: _File, size: int | None) -> Iterator[Image.Image]:
    num_pixels = 0
    with pictures.readable(file.name), Image.open(file.read()) as image:
        for frame in ImageSequence.Iterator(image):
            num_pixels += frame.width * frame.height
            if num_pixels > MOST_PIXELS:
                raise ValueError(f"its frames have more than {MOST_PIXELS} pixels in all")
            yield pictures.fitted(frame, size)


def _by_numbers(file: _File) -> list[str | int]:
    """``frame10`` comes after ``frame9``; text and numbers take turns, so that like is compared with like."""
    return [int(piece) if number % 2 else piece for number, piece in enumerate(_DIGITS.split(file.name))]
