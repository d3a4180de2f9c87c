"""Building a Block for a published checkpoint: which of the class's layouts it is, and what its config means."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmblocks.block import Block
from mmblocks.checkpoints import config, files, mapped, tensors
from mmblocks.checkpoints.building import build
from mmblocks.checkpoints.difference import Difference
from mmblocks.checkpoints.filling import Job
from mmblocks.checkpoints.layouts import Layout

B = TypeVar("B", bound=Block)

DETAILED = 2
"""Layouts of which all that does not fit is shown."""


def build_published(
    cls: type[B], path: Path, published: dict[str, Any], name: str | None, overrides: dict[str, Any]
) -> tuple[B, Layout, list[Job]]:
    """A Block without values, its layout, and the job that fills all of it from one published checkpoint."""
    config.check_arguments(cls, overrides, "from_pretrained")
    candidates = _candidates(cls, path, published, name)
    built = [(layout, stored, instance(cls, layout, published, overrides)) for layout, stored in candidates]
    if len(built) > 1:  # by their names alone several fit: one may leave some out, or expect other shapes
        built = _exact(cls, path, built)
    layout, stored, block = built[0]
    title = f"{cls.__name__} from {path} in the layout {layout.name!r}"
    sources = layout.sources(stored, block.config)
    job = Job(title, tensors.slots(block), sources, stored, layout.unknown(stored))
    return block, layout, [job._replace(check=_derived_check(title, layout, stored, block)) if layout.derived else job]


def _derived_check(title: str, layout: Layout, stored: files.Stored, block: Block) -> Callable[[bool], None]:
    """The comparison of what follows from the arguments, which reads no other tensor."""

    def check(forgetting: bool) -> None:
        for key in filter(layout.derives, stored):
            tensor = stored[key]
            try:
                layout.check_derived({key: tensor}, block.config)
            except ValueError as error:
                raise ValueError(f"{title}: {error}") from error
            if forgetting:
                mapped.forget(tensor)

    return check


def _candidates(cls: type[Block], path: Path, published: dict[str, Any], name: str | None) -> list[tuple[Layout, files.Stored]]:
    """The layout of that name, or all that know every tensor's name; at least one.

    Raises:
        ValueError: there is none; the message says for each layout why not.
    """
    chosen = layouts(cls, str(path), name)
    if name is not None:
        return [(layout, _open(path, layout)) for layout in chosen]

    fitting: list[tuple[Layout, files.Stored]] = []
    reasons: list[tuple[int, str, str]] = []
    for layout in chosen:
        title, count = f"layout {layout.name!r}", sys.maxsize
        try:
            stored = _open(path, layout)
        except ValueError as error:
            reasons.append((count, title, str(error)))
            continue
        if layout.fits(stored, published):
            fitting.append((layout, stored))
        else:
            count = len(layout.unknown(stored)) or count
            reasons.append((count, title, _why_not(layout, stored, published)))
    if not fitting:
        names = ", ".join(layout.name for layout in chosen)
        raise ValueError("\n".join([f"{path} fits no layout of {cls.__name__} ({names})", *_nearest_first(reasons)]))
    return fitting


def _nearest_first(reasons: list[tuple[int, str, str]]) -> list[str]:
    """Why layouts do not fit: the two with the fewest unknown names in full, the others in a line.

    Args:
        reasons: how many names of the file a layout does not know, its title, and why it does not fit.
    """
    ordered = sorted(reasons, key=lambda reason: reason[0])
    full = [f"{title}: {why}" for _, title, why in ordered[:DETAILED]]
    return full + [f"{title}: {why.splitlines()[0].rstrip(':')}" for _, title, why in ordered[DETAILED:]]


def layouts(cls: type[Block], where: str, name: str | None) -> tuple[Layout, ...]:
    """All layouts of a class, or the one of that name.

    Raises:
        ValueError: there is none.
    """
    if not cls.layouts:
        raise ValueError(
            f"{where} was not written by save_pretrained, and {cls.__name__} has no layouts for published checkpoints;"
            " call from_pretrained of the class that reads it"
        )
    chosen = tuple(layout for layout in cls.layouts if name in (None, layout.name))
    if not chosen:
        raise ValueError(f"layout is {name!r}; {cls.__name__} has: {', '.join(layout.name for layout in cls.layouts)}")
    return chosen


def _open(path: Path, layout: Layout) -> files.Stored:
    """Without the files of a sharded checkpoint that hold nothing but other parts."""
    return files.open_published(path, layout.unwrap, lambda key: layout.to_ours(key) != ())


def _exact(cls: type[B], path: Path, built: list[tuple[Layout, files.Stored, B]]) -> list[tuple[Layout, files.Stored, B]]:
    """The only one of several that fits in every name and shape."""
    exact, reasons = [], []
    for layout, stored, block in built:
        difference = layout.check({key: tuple(tensor.shape) for key, tensor in stored.meta.items()}, block)
        if difference:
            reasons.append(f"layout {layout.name!r}:\n{difference}")
        else:
            exact.append((layout, stored, block))
    if len(exact) > 1:
        names = ", ".join(layout.name for layout, _, _ in exact)
        raise ValueError(f"{path} fits several layouts of {cls.__name__}: {names}; choose one: from_pretrained(..., layout=...)")
    if not exact:
        raise ValueError("\n".join([f"{path} fits no layout of {cls.__name__}", *reasons]))
    return exact


def instance(cls: type[B], layout: Layout, published: dict[str, Any], overrides: dict[str, Any]) -> B:
    """The Block that a layout makes of a published config, without values.

    Raises:
        ValueError, TypeError, ImportError: the config is not understood, lacks arguments, or does not fit the class.
    """
    origin = f"layout {layout.name!r}"
    try:
        with torch.device("meta"):
            arguments = {**layout.arguments(published), **overrides}
    except KeyError as error:
        raise ValueError(f"{origin} of {cls.__name__}: the published config lacks {error}") from error
    except (TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"{origin} of {cls.__name__}: the published config is not understood: {error}") from error
    config.check_arguments(cls, arguments, origin)
    config.check_complete(cls, arguments, origin)
    return build(cls, arguments, origin, overrides)


def _why_not(layout: Layout, stored: files.Stored, published: Mapping[str, Any]) -> str:
    unknown = {key: tuple(stored.meta[key].shape) for key in layout.unknown(stored)}
    if unknown:
        return str(Difference({}, unknown, {}))
    try:
        layout.arguments(published)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"its config does not fit: {type(error).__name__}: {error}"
    return "none of its tensors is there"
