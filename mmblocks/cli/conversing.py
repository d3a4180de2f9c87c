"""The commands that use whole models: ``mmblocks chat`` and ``mmblocks draw``."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL.Image import Image as PILImage

from mmblocks.cli import loading, reporting
from mmblocks.cli import pictures as pictures_io
from mmblocks.pipelines.pipeline import Pipeline
from mmblocks.support.pictures import picture_of

ENDS = ("/quit", "/exit")
"""What ends a conversation, as the end of the input does."""


def load(source: str, front: str | None, revision: str | None, dtype: str | None, device: str) -> Pipeline:
    """The pipeline; raises as ``Pipeline.from_pretrained``."""
    where = loading.device_of(device)
    return Pipeline.from_pretrained(source, front=front, revision=revision, dtype=loading.dtype_of(dtype), device=where)


def size_of(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "WIDTHxHEIGHT", as people write sizes.

    Raises:
        ValueError: it is no size.
    """
    if text is None:
        return None
    width, by, height = text.lower().partition("x")
    if not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--size is {text!r}; accepted: WIDTHxHEIGHT in pixels, such as 720x720")
    return int(height), int(width)


def check_pictures(files: list[Path]) -> list[PILImage]:
    """Pictures, before anything is loaded.

    Raises:
        FileNotFoundError, ValueError: a file that is not there, or is no image.
    """
    return [picture_of(file, str(file)) for file in files]


def check_out(out: Path, num_images: int, force: bool) -> list[Path]:
    """The files to write, before anything is loaded: ``cat.png``, or ``cat-0.png``, ``cat-1.png``, ...

    Raises:
        FileNotFoundError, FileExistsError, IsADirectoryError, ValueError: they cannot be written.
    """
    from PIL import Image

    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out is {out}; accepted: the name of an image, such as cat.png")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} to")
    files = [out] if num_images == 1 else [out.with_stem(f"{out.stem}-{index}") for index in range(num_images)]
    for file in files:
        reporting.check_target(file, force)
    return files


def converse(pipe: Pipeline, lines: Iterable[str], pictures: list[PILImage], out: Path, settings: dict[str, Any]) -> None:
    """Answers line after line, each reply piece by piece; pictures of replies are written to files."""
    messages: list[dict[str, Any]] = []
    number = 0
    for line in lines:
        content: list[Any] = [*pictures, line]
        pictures = []
        messages.append({"role": "user", "content": content})
        said: list[Any] = []
        for piece in pipe.chat(messages, stream=True, **settings):
            said.append(piece)
            if isinstance(piece, str):
                sys.stdout.write(piece)
            else:
                file = out / f"reply-{number}.png"
                number += 1
                pictures_io.save(piece[0] if isinstance(piece, list) else piece, file)
                sys.stdout.write(f"\n[{file}]\n")
            sys.stdout.flush()
        sys.stdout.write("\n")
        messages.append({"role": "assistant", "content": said or [" "]})


def typed(prompt: str | None) -> Iterator[str]:
    """The one message that was given, or what is typed, line by line."""
    if prompt is not None:
        yield prompt
        return
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            reporting.ERR.print("> ", end="", markup=False, highlight=False)
        line = sys.stdin.readline()
        if not line or line.strip() in ENDS:
            return
        if line.strip():
            yield line.rstrip("\n")
