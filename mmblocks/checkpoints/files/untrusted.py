"""Files that come from elsewhere: links must not lead out of their folder; JSON is bounded in size, in depth and in memory."""

import json
import re
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20
"""Bytes; the index of the largest published checkpoints has about nine million."""

MOST_CONTAINERS = 500_000
"""Objects and lists; an empty one takes three bytes in a file, but sixty in memory."""

DEEPEST = 64
"""Levels; everything that traverses a value does so recursively."""


def inside(folder: Path, file: Path, what: str) -> Path:
    """``file`` of ``folder``, unless it is a link that leads elsewhere.

    Raises:
        ValueError: it leads out; ``what`` says who named it.
    """
    root, target = folder.resolve(), file.resolve()
    # In the Hub's cache every file is a link from <repository>/snapshots/<revision>/ to <repository>/blobs/ ...
    in_hub_cache = target.parent.name == "blobs" and target.parents[1] / "snapshots" in root.parents
    # ... or, where repositories share what they have in common, on to <cache>/blobs/<two digits>/.
    store = target.parents[1] if len(target.parents) > 2 else target.parent
    if store.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name) and target.parent.name == target.name[:2]:
        repository = next((place for place in root.parents if place.parent == store.parent), root)
        in_hub_cache = repository.name.startswith("models--") and repository / "snapshots" in root.parents
    if target.parent != root and not in_hub_cache:
        raise ValueError(f"{what}, a link that leads out of the folder, to {target}")
    return file


def read_json(file: Path, *, unique: bool = False) -> Any:
    """The content of a file.

    Args:
        file: the file.
        unique: refuse objects that have a name twice, of which JSON readers take the last without a word.

    Raises:
        ValueError: it is not JSON, or larger or deeper than any such file has reason to be.
    """
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; accepted: JSON of up to {LARGEST}")
    content = file.read_bytes()
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS:
        raise ValueError(f"{file} holds more than {MOST_CONTAINERS} objects and lists")
    try:
        value = json.loads(content, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if _deeper_than(value, DEEPEST):
        raise ValueError(f"{file} is nested more than {DEEPEST} levels deep")
    return value


def read_object(folder: Path, name: str, *, unique: bool = False) -> dict[str, Any] | None:
    """The JSON object in a file of a folder; None where there is no such file.

    Raises:
        ValueError: it is no JSON object, or a link that leads out of the folder.
    """
    file = folder / name
    if not file.is_file():
        return None
    content = read_json(inside(folder, file, f"{folder} holds {name!r}"), unique=unique)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected an object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in content if names.count(name) > 1)!r} occurs twice")
    return content


def _deeper_than(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [item for outer in layer if isinstance(outer, dict | list) for item in _items(outer)]
        if not layer:
            return False
    return True


def _items(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value
