"""Every entry of the published configs is used, refused, or known to change no numbers."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks import Block
from mmblocks.checkpoints.harmless import is_harmless
from mmblocks.checkpoints.layouts import Layout
from tests.parity.test_manifests import CASES, manifests

__all__ = ["manifests"]  # a fixture


def leaves(config: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values that are no dicts, and where they stand."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, *path, key)
        else:
            yield (*path, key), value


def others(value: Any) -> list[Any]:
    """Values that say something else."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value * 2, value / 2, -1, "another"]
        case str():
            return [f"{value}-another", "gelu_new", 3]
        case list():
            return [[*value, *(value[-1:] or [1])], [another for item in value[:1] for another in others(item)][:1] + value[1:], []]
        case _:
            return [True, 1, 2.5, "another", [1], {"another": 1}]


def replaced(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The config with another value in one place."""
    first, *rest = path
    return {**config, first: replaced(config[first], tuple(rest), value) if rest else value}


def matters(layout: Layout, config: dict[str, Any], arguments: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Whether one of the other values is refused, or changes what is built."""
    for another in others(value):
        try:
            found = layout.arguments(replaced(config, path, another))
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
            return True
        if found != arguments:
            return True
    return False


@pytest.mark.parametrize(("name", "cls", "layout_name"), CASES, ids=[f"{n}-{c.__name__}-{layout}" for n, c, layout in CASES])
def test_every_entry_is_read(manifests: Path, name: str, cls: type[Block], layout_name: str) -> None:
    config = json.loads(gzip.decompress((manifests / f"{name}.json.gz").read_bytes()))["config"]
    (layout,) = (layout for layout in cls.layouts if layout.name == layout_name)
    with torch.device("meta"):
        arguments = layout.arguments(config)
        silent = [
            ".".join(path)
            for path, value in leaves(config)
            if not is_harmless(".".join(path), value, layout.harmless) and not matters(layout, config, arguments, path, value)
        ]

    assert not silent
    with pytest.raises(ValueError, match="an_entry_of_tomorrow"):
        layout.arguments({**config, "an_entry_of_tomorrow": 1})
