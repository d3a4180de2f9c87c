"""Which parameters train: chosen by name, and shown as a table of parts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from mmblocks.checkpoints.layouts import patterns

Choice = Sequence[str] | Callable[[str], bool]
"""Names of parameters, patterns as in ``layouts`` (``"inputs.*"``, ``"trunk.layers.{}.mlp.*"``), or a function of the name."""


class PartSize(NamedTuple):
    """A part's parameters, how many of them train, and under which name."""

    name: str
    trainable: int
    total: int


class PartTable(NamedTuple):
    """A row for each part; printed as a table."""

    parts: tuple[PartSize, ...]

    @property
    def total(self) -> PartSize:
        """All parts together."""
        return PartSize("total", sum(part.trainable for part in self.parts), sum(part.total for part in self.parts))

    def __str__(self) -> str:
        rows = [(part.name, f"{part.trainable:,}", f"{part.total:,}") for part in (*self.parts, self.total)]
        rows = [("part", "trainable", "parameters"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(f"{name:<{widths[0]}}  {some:>{widths[1]}}  {every:>{widths[2]}}" for name, some, every in rows)


def freeze(module: nn.Module, *, train: Choice = ()) -> PartTable:
    """Lets the chosen parameters train and no other, in place.

    Args:
        module: a model or a part.
        train: what trains; nothing by default. Of a parameter that has several names any will do.

    Returns:
        The table of parts.

    Raises:
        ValueError: a name or pattern that no parameter has.
    """
    names = dict(module.named_parameters(remove_duplicate=False))
    if callable(train):
        chosen = {name for name in names if train(name)}
    else:
        fitting = {pattern: {name for name in names if patterns.match(pattern, name) is not None} for pattern in train}
        idle = [pattern for pattern, found in fitting.items() if not found]
        if idle:
            raise ValueError(f"train has {', '.join(idle)}; no parameter of {type(module).__name__} is called so")
        chosen = set().union(*fitting.values())
    for parameter in names.values():
        parameter.requires_grad_(False)
    for name in chosen:
        names[name].requires_grad_()
    return trainable_parts(module)


def trainable_parts(module: nn.Module, depth: int = 2) -> PartTable:
    """How many parameters each part has, and how many of them train.

    Args:
        module: a model or a part.
        depth: how many components of a name make a part: 2 tells ``inputs.text`` from ``inputs.vision``.

    Raises:
        ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; accepted: 1 or more")
    sizes: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        *path, last = name.split(".")
        entry = sizes.setdefault(".".join(path[:depth] or [last]), [0, 0])
        entry[0] += parameter.numel() * parameter.requires_grad
        entry[1] += parameter.numel()
    return PartTable(tuple(PartSize(name, trainable, total) for name, (trainable, total) in sizes.items()))
