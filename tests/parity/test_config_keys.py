"""Every entry of the published configs is used, refused, or known to change no numbers."""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmblocks import Block
from mmblocks.checkpoints.layouts.harmless import is_harmless
from mmblocks.checkpoints.layouts.layout import Layout
from tests.parity.test_manifests import CASES, manifests

__all__ = ["manifests"]  # a fixture


@cache
def published_config(file: Path) -> dict[str, Any]:
    """That of a manifest, which is a large file."""
    config: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))["config"]
    return config


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
            return [f"another-{value}", "gelu_new", 3]
        case list():
            changed = [another for item in value[:1] for another in others(item)][:1] + value[1:]
            return [[*value, *(value[-1:] or [1])], changed, [], ["another"] * len(value)]
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
    config = published_config(manifests / f"{name}.json.gz")
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


TYPED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What a reader may raise; ``from_pretrained`` makes a ``ValueError`` of it."""

VALUES = st.one_of(
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["gelu", "relu", "swish", "layer_norm", "gemma", "", "x"]),
    st.lists(st.integers(0, 5), max_size=3),
    st.dictionaries(st.sampled_from(["type", "factor", "eps"]), st.integers(0, 5), max_size=2),
)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[int, int, Any, bool]:
    """Which case, which entry of its config, the value it gets, and whether it is a new entry beside that one."""
    return draw(st.integers(0, len(CASES) - 1)), draw(st.integers(0, 10**6)), draw(VALUES), draw(st.booleans())


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutation=mutations())
def test_mutated_configs(manifests: Path, mutation: tuple[int, int, Any, bool]) -> None:
    """Another value, or another entry: refused with a typed error, or it changes what is built, or it is known to be harmless."""
    number, which, value, is_new = mutation
    name, cls, layout_name = CASES[number]
    published = published_config(manifests / f"{name}.json.gz")
    (layout,) = (layout for layout in cls.layouts if layout.name == layout_name)
    found = list(leaves(published))
    path, old = found[which % len(found)]
    if is_new:
        path, old = (*path[:-1], f"{path[-1]}_of_tomorrow"), None
    changed = replaced(published, path, value)
    with torch.device("meta"):
        arguments = layout.arguments(published)
        try:
            after = layout.arguments(changed)
        except TYPED:
            return
    is_known = is_harmless(".".join(path), value, layout.harmless)
    assert after != arguments or is_known or _means_the_same(old, value), (name, layout_name, path, old, value)


def _means_the_same(old: Any, value: Any) -> bool:
    """Whether the authors' code takes both for one: a flag that is as true, nothing for nothing, another name of one function."""
    if isinstance(old, bool) or not old:
        return bool(old) == bool(value)
    return old == value or (old in ("silu", "swish") and value in ("silu", "swish"))
