"""Folders that are replaced in one step: a reader sees the old content or the new, and a crash loses neither.

Everything is written to a folder beside the target, called ``.<target>.saving-<process>-<random>``, which then takes the target's
place. A process that is killed leaves such a folder behind, which the next save to the same target removes; see ``leftovers``.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import leftovers

T = TypeVar("T")

MOST_ATTEMPTS = 50
"""To read a folder that others replace meanwhile."""

_WEIGHTS = re.compile(r"(model|diffusion_pytorch_model|open_clip_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""The weights that a Block writes, under its own names or published ones (``Layout.weights``)."""

_CURRENT_FOLDER = -100
"""AT_FDCWD of fcntl.h: paths are as usual."""

_EXCHANGE = 2
"""RENAME_EXCHANGE of linux/fs.h."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Gives an empty folder to write to, which becomes ``target`` at the end, and vanishes if anything fails.

    Files of the old target survive, unless they were written by a Block or are written anew.

    Raises:
        NotADirectoryError: the target is a file.
    """
    target = Path(os.path.realpath(target))  # a link keeps pointing to it
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot save to {target}: it is not a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # else one of them may hold what was there before
        leftovers.remove(target)
    with leftovers.own_folder(target) as temporary:
        yield temporary
        put(temporary, target)  # by now ``temporary`` is the old content, if there was any
    leftovers.remove(target)


def consistently(path: Path, read: Callable[[], T]) -> T:
    """``read()``, again if another process replaced ``path`` before it was done: all it gives is the old version, or the new.

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


def put(folder: Path, target: Path, stale: re.Pattern[str] | None = None) -> None:
    """Puts a complete folder in the place of ``target``, which is beside it. What was there is called ``folder`` afterwards.

    Files of the target's survive, but for those whose names are ``stale``; None stands for what a Block writes.
    """
    if target.exists():
        shutil.copymode(target, folder)
        ours = _written_by_a_block(target) if stale is None else (file for file in target.iterdir() if stale.fullmatch(file.name))
        _carry_over(target, folder, set(ours))
    _sync(folder)
    if target.exists():
        exchange(folder, target)
    else:
        os.rename(folder, target)
    _sync_entry(target.parent)


def exchange(first: Path, second: Path) -> None:
    """Swaps two folders in one step where the system can, else in three renames with a moment in which ``second`` is gone.

    A process killed in that moment leaves the old content in a folder called ``.<name>.replaced-...`` beside it.
    """
    if _exchange_in_one_step(first, second):
        return
    aside = first.with_name(first.name.replace(".saving-", ".replaced-"))
    os.rename(second, aside)
    try:
        os.rename(first, second)
    except OSError:
        os.rename(aside, second)
        raise
    os.rename(aside, first)


def _exchange_in_one_step(first: Path, second: Path) -> bool:
    """False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    if renameat2(_CURRENT_FOLDER, os.fsencode(first), _CURRENT_FOLDER, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _carry_over(old: Path, new: Path, ours: set[Path]) -> None:
    """Links the files that are not ours from the old folder into the new one."""
    for at, folders, names in os.walk(old):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for name in names + links:
            file = Path(at, name)
            copy = new / file.relative_to(old)
            if file not in ours and not os.path.lexists(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                link(file, copy)


def link(file: Path, copy: Path) -> None:
    """The same file under another name, or a copy where that is impossible."""
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:  # no hard links on this file system
        shutil.copy2(file, copy, follow_symlinks=False)


def _written_by_a_block(folder: Path) -> Iterator[Path]:
    yield folder / config.FILE
    yield from (file for file in folder.iterdir() if _WEIGHTS.fullmatch(file.name))
    try:
        inside = [config.part_folder(folder, name) for name in config.subfolders(config.read(folder) or {})]
    except (ValueError, OSError):  # a broken folder does not stand in the way of a new one
        return
    for part in inside:
        yield from _written_by_a_block(part)


def _sync(folder: Path) -> None:
    """Forces everything in a folder to the disk, files before the folders that name them."""
    for at, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(at, name)):
                _sync_entry(Path(at, name))
        _sync_entry(Path(at))


def _sync_entry(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
