"""What a repository of the Hub holds, as a server or a note in the cache says it: checked before any of it becomes a path."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from huggingface_hub import ModelInfo

from mmblocks.checkpoints.hub.answers import COMMIT

_PARTS = re.compile(r"[^/\\\0-\x1f\x7f]+(/[^/\\\0-\x1f\x7f]+)*")
"""Names with a slash between each and the next."""

_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}|")
_NO_REVISION = re.compile(r"[\0-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^-|(^|/)\.|\.lock(/|$)|[./]$|^/|^$")
"""What git does not let a branch or tag be called."""


class Listed(NamedTuple):
    """A file of a repository.

    Attributes:
        checksum: ``"sha256:..."``, or ``"git:..."`` for files that git keeps itself; empty where none is stated.
        size: in bytes; None where it is not stated.
    """

    checksum: str
    size: int | None


def checked_commit(value: object, title: str, wanted: str) -> str:
    """A commit's hash, and the requested one if one was named.

    Raises:
        ValueError: it is none, or another.
    """
    if not isinstance(value, str) or not COMMIT.fullmatch(value):
        raise ValueError(f"{title}: the server names the commit {value!r:.200}; accepted: a hash of 40 hexadecimal digits")
    if COMMIT.fullmatch(wanted) and value != wanted:
        raise ValueError(f"{title}: the server names the commit {value}; accepted: {wanted}, as requested")
    return value


def check_revision(revision: str) -> None:
    """Refuses what can name no branch, tag or commit.

    Raises:
        TypeError, ValueError: it is no such name.
    """
    if not isinstance(revision, str):
        raise TypeError(f"revision is a {type(revision).__name__}; accepted: the name of a branch or tag, or a commit's hash")
    if _NO_REVISION.search(revision):
        raise ValueError(f"revision is {revision!r}; accepted: the name of a branch or tag, or a commit's hash")


def files(info: ModelInfo, title: str) -> dict[str, Listed]:
    """The files that a server lists, without those whose names lead out of the repository: ``check_wanted`` refuses such names.

    Raises:
        ValueError: a name that is there twice; a size or checksum that is none.
    """
    found: dict[str, Listed] = {}
    for file in info.siblings or []:
        name = file.rfilename
        if not _is_inside(name):
            continue  # as uploads from Windows have them, with backslashes: no reason to refuse the other files
        if name in found:
            raise ValueError(f"{title} lists {name!r} twice")
        git = f"git:{file.blob_id}" if file.blob_id is not None else ""
        row = (git, file.size) if file.lfs is None else (f"sha256:{file.lfs.sha256}", file.lfs.size)
        if file.lfs is not None and file.size not in (None, row[1]):
            raise ValueError(f"{title} lists {name!r} with the sizes {file.size!r:.200} and {row[1]!r:.200}")
        found[name] = _checked_row(*row, name, title)
    return found


def from_note(content: object, title: str) -> dict[str, Listed]:
    """What ``to_note`` has written, here or in an earlier version, which noted no sizes.

    Raises:
        ValueError: something else.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{title} holds a {type(content).__name__}; accepted: an object of files")
    found = {}
    for name, row in content.items():
        checksum, size = (row, None) if isinstance(row, str) else row if isinstance(row, list) and len(row) == 2 else (None, None)
        if not _is_inside(name):
            raise ValueError(f"{title} lists {name!r:.200}; accepted: paths of files inside it")
        found[name] = _checked_row(checksum, size, name, title)
    return found


def to_note(listed: Mapping[str, Listed]) -> dict[str, Any]:
    """As JSON."""
    return {name: list(row) for name, row in listed.items()}


def check_wanted(path: str, listed: Mapping[str, Listed], title: str) -> None:
    """Refuses a file that is not one file on every system.

    Raises:
        ValueError: its name leads out of the repository, means something else on Windows, or is that of another file but for case.
    """
    if not _is_inside(path):
        raise ValueError(f"{title}: {path!r:.200} is no path of a file inside it")
    if ":" in path or any(_DEVICE.match(name) or name.endswith((".", " ")) for name in path.split("/")):
        raise ValueError(f"{title}: {path!r} is no name of a file on Windows; accepted: names that mean the same everywhere")
    alike = [name for name in listed if name != path and _folded(name) == _folded(path)]
    if alike:
        raise ValueError(f"{title} lists {path!r} and {alike[0]!r}, which are one file where case does not count")


def _is_inside(name: object) -> TypeGuard[str]:
    """Whether it is the path of a file inside a repository, on every system."""
    return (
        isinstance(name, str)
        and _PARTS.fullmatch(name) is not None
        and not {".", ".."} & set(name.split("/"))
        and not _DRIVE.match(name)
        and len(name) <= 4096
    )


def _checked_row(checksum: object, size: object, name: str, title: str) -> Listed:
    if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
        raise ValueError(f"{title} lists {name!r} with the checksum {checksum!r:.200}; accepted: hashes in hexadecimal digits")
    if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**60):
        raise ValueError(f"{title} lists {name!r} with the size {size!r:.200}; accepted: a number of bytes")
    return Listed(checksum, size)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
