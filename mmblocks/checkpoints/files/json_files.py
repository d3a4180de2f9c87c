"""Reading JSON that comes from elsewhere: bounded in size, in depth and in memory."""

import json
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20
"""Bytes; the index of the largest published checkpoints has about nine million."""

MOST_CONTAINERS = 500_000
"""Objects and lists; an empty one takes three bytes in a file, but sixty in memory."""

DEEPEST = 64
"""Levels; everything that traverses a value does so recursively."""


def read(file: Path, *, unique: bool = False) -> Any:
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in content if names.count(name) > 1)!r} occurs twice")
    return content


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [item for outer in layer if isinstance(outer, dict | list) for item in _items(outer)]
        if not layer:
            return False
    return True


def _items(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value
