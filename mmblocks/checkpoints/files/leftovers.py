"""Hidden folders beside a target in which a save is at work, and those that a killed one has left behind.

Each save holds a lock on a file beside its folder. The system takes the lock away from a process that dies, on this machine or,
where the folder is shared, on another: a folder whose lock is free is nobody's any more.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

_ENDING = r"\.(?:saving|replaced)-(?P<owner>(?P<process>\d+)-[0-9a-f]{8})"
"""What a save is at work in, and where the old content stands for a moment on systems that cannot exchange folders."""


@contextmanager
def own_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, called ``.<target>.saving-<process>-<random>``, until the end of the block."""
    while True:
        owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        file = _lock_file(target, owner)
        lock = _lock(file)
        is_held = _hold(lock, file)
        # Another save may have found the file in the moment before it was locked, and have taken it away.
        if not is_held or file.exists():
            break
        lock.release()
    folder = target.with_name(f".{target.name}.saving-{owner}")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_held:
            _let_go(lock, file)


@contextmanager
def alone(target: Path, doing: str) -> Iterator[None]:
    """Until the end of the block, no other process does this to ``target``, as far as the file system has locks.

    Args:
        target: the folder that is written.
        doing: what is done to it, as in "converts to", for the message.

    Raises:
        FileExistsError: another process does it.
    """
    file = target.with_name(f".{target.name}.lock")
    lock = _lock(file)
    try:
        is_held = _hold(lock, file, blocking=False)
    except Timeout as error:
        raise FileExistsError(f"another process {doing} {target} right now") from error
    try:
        yield
    finally:
        if is_held:
            lock.release()  # the file stays: another process may be about to lock it


def remove(target: Path) -> None:
    """Removes what killed saves of ``target`` have left beside it; what a running one is at work in stays."""
    pattern = re.compile(rf"\.{re.escape(target.name)}{_ENDING}(?P<lock>\.lock)?")
    found: dict[str, list[re.Match[str]]] = {}
    for name in os.listdir(target.parent):
        match = pattern.fullmatch(name)
        if match is not None:
            found.setdefault(match["owner"], []).append(match)
    for owner, matches in found.items():
        folders = [target.with_name(match[0]) for match in matches if not match["lock"]]
        if any(match["lock"] for match in matches):
            _remove_unlocked(folders, _lock_file(target, owner))
        # Without a lock: of an earlier version, or on a file system without locks. The process tells, as far as it can be told.
        elif not _is_running(int(matches[0]["process"])):
            _remove(folders)


def _remove_unlocked(folders: list[Path], file: Path) -> None:
    lock = _lock(file)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError, NotImplementedError):
        return
    _remove(folders)
    if any(folder.exists() for folder in folders):
        lock.release()
    else:
        _let_go(lock, file)


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _lock_file(target: Path, owner: str) -> Path:
    return target.with_name(f".{target.name}.saving-{owner}.lock")


def _lock(file: Path) -> BaseFileLock:
    """The system's own lock: what filelock offers where there is none outlives a process that dies."""
    return FileLock(file, fallback_to_soft=False)


def _hold(lock: BaseFileLock, file: Path, *, blocking: bool = True) -> bool:
    """False on a file system without locks, such as some that are shared over a network; no file is left there."""
    try:
        lock.acquire(blocking=blocking)
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        file.unlink(missing_ok=True)
        return False
    return True


def _let_go(lock: BaseFileLock, file: Path) -> None:
    if os.name == "nt":  # where a file that is open cannot be removed
        lock.release()
    file.unlink(missing_ok=True)
    lock.release()


def _is_running(process: int) -> bool:
    """On this machine; True where it cannot be told."""
    if os.name == "nt":
        return True  # there, a signal would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
