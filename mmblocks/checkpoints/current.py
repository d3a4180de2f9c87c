"""Reading a folder that another process may replace meanwhile: all of it is the old version, or all of it the new."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MOST_ATTEMPTS = 50


def consistently(path: Path, read: Callable[[], T]) -> T:
    """``read()``, again if ``path`` became another folder or file before it was done.

    What ``read`` opens stays readable: files are mapped, and a folder that is replaced goes on existing for those who have it open.

    Raises:
        OSError: the folder is replaced faster than it can be read; or what ``read`` raises on a folder that stayed the same.
    """
    if os.name == "nt":
        return read()  # Windows cannot open a folder, and does not let one that is in use be replaced
    for _ in range(MOST_ATTEMPTS):
        descriptor = None
        try:
            # While it is open, no other folder can have its number.
            descriptor = os.open(path, os.O_RDONLY)
            result = read()
        except (OSError, ValueError):
            if descriptor is not None and _is(path, descriptor):
                raise
            if descriptor is None and not path.exists():
                raise
        else:
            if _is(path, descriptor):
                return result
        finally:
            if descriptor is not None:
                os.close(descriptor)
    raise OSError(f"{path} is replaced by others faster than it can be read")


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
