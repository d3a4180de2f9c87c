"""The rows of a layout's table: which published tensor becomes which of ours, and back.

A row names both sides by patterns and says what is done to the tensors in between. Another kind of row, such as one that joins
several published tensors into one of ours, is another class with ``names`` and ``source``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.layouts.transforms import transforms

Arguments = Mapping[str, Any]
"""A Block's config: argument name -> value."""

Side = Literal["ours", "theirs"]


class Source(NamedTuple):
    """Where one tensor comes from: the names on the other side, and what is done to their tensors."""

    keys: tuple[str, ...]
    convert: Callable[[Sequence[Tensor]], Tensor]

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Raises ``ValueError`` where the tensors cannot be converted. On meta tensors it tells the shape."""
        return self.convert([tensors[key] for key in self.keys])


def unchanged(key: str) -> Source:
    """A tensor that is the same on both sides."""
    return Source((key,), lambda tensors: tensors[0])


@dataclass(frozen=True)
class Rule:
    """One published tensor is one of ours, up to a named transform.

    Raises:
        ValueError: the two patterns do not have the same placeholders, or the transform is unknown.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import Layout, Rule
        >>> layout = Layout("theirs", (Rule("fc{}.weight", "layers.{}.weight", "squeeze_1x1"),))
        >>> ours = dict(layout.convert({"fc0.weight": torch.zeros(8, 4, 1, 1)}, {}))
        >>> {name: tuple(tensor.shape) for name, tensor in ours.items()}
        {'layers.0.weight': (8, 4)}
        >>> [tuple(tensor.shape) for _, tensor in layout.convert(ours, {}, to="theirs")]
        [(8, 4, 1, 1)]
    """

    theirs: str
    ours: str
    transform: str = "same"

    def __post_init__(self) -> None:
        _check_placeholders(self.theirs, self.ours)
        if self.transform not in transforms:
            raise ValueError(f"transform is {self.transform!r}; accepted: {', '.join(transforms)}")

    def names(self, side: Side) -> tuple[str, ...]:
        """The patterns of one side."""
        return (self.theirs,) if side == "theirs" else (self.ours,)

    def source(self, keys: tuple[str, ...], to: Side, part: int, arguments: Arguments) -> Source:
        """The tensor on side ``to`` that is made of the tensor called ``keys[0]`` on the other."""
        transform = transforms[self.transform]
        change = transform.forward if to == "ours" else transform.backward
        return Source(keys, lambda tensors: change(tensors[0]))


@dataclass(frozen=True)
class Split:
    """One published tensor holds several of ours, one below the other along its first dimension.

    Attributes:
        theirs: pattern of the published name.
        ours: patterns of our names, with the same placeholders.
        sizes: rows of each of ours, from the Block's arguments; None for parts of equal size.
        num_groups: for interleaved tensors, such as query, key and value of one head after those of another: the number of
            groups, from the Block's arguments; None for one. Sizes count the rows of all groups.

    Raises:
        ValueError: the patterns do not have the same placeholders.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import Layout, Split
        >>> layout = Layout("theirs", (Split("qkv.*", ("query.*", "key.*", "value.*")),))
        >>> ours = dict(layout.convert({"qkv.weight": torch.arange(6.0).view(6, 1)}, {}))
        >>> {name: tensor.flatten().tolist() for name, tensor in ours.items()}
        {'query.weight': [0.0, 1.0], 'key.weight': [2.0, 3.0], 'value.weight': [4.0, 5.0]}
    """

    theirs: str
    ours: tuple[str, ...]
    sizes: Callable[[Arguments], Sequence[int]] | None = None
    num_groups: Callable[[Arguments], int] | None = None

    def __post_init__(self) -> None:
        for ours in self.ours:
            _check_placeholders(self.theirs, ours)

    def names(self, side: Side) -> tuple[str, ...]:
        """The patterns of one side."""
        return (self.theirs,) if side == "theirs" else self.ours

    def source(self, keys: tuple[str, ...], to: Side, part: int, arguments: Arguments) -> Source:
        """Tensor number ``part`` on side ``to``, made of the tensors called ``keys`` on the other."""
        num_groups = self.num_groups(arguments) if self.num_groups else 1
        if to == "theirs":
            return Source(keys, lambda tensors: _join(tensors, num_groups))
        sizes = tuple(self.sizes(arguments)) if self.sizes else None
        return Source(keys, lambda tensors: self._take(tensors[0], part, sizes, num_groups))

    def _take(self, fused: Tensor, part: int, sizes: tuple[int, ...] | None, num_groups: int) -> Tensor:
        sizes = sizes or (fused.shape[0] // len(self.ours),) * len(self.ours)
        if len(sizes) != len(self.ours) or sum(sizes) != fused.shape[0]:
            raise ValueError(f"{fused.shape[0]} rows cannot be split into {len(self.ours)} parts of {sizes}")
        _check_groups(sizes, num_groups)
        pieces = torch.split(_grouped(fused, num_groups), [size // num_groups for size in sizes], dim=1)
        return rearrange(pieces[part], "group rows ... -> (group rows) ...")


def _join(tensors: Sequence[Tensor], num_groups: int) -> Tensor:
    _check_groups([tensor.shape[0] for tensor in tensors], num_groups)
    grouped = torch.cat([_grouped(tensor, num_groups) for tensor in tensors], dim=1)
    return rearrange(grouped, "group rows ... -> (group rows) ...")


def _grouped(tensor: Tensor, num_groups: int) -> Tensor:
    return rearrange(tensor, "(group rows) ... -> group rows ...", group=num_groups)


def _check_groups(sizes: Sequence[int], num_groups: int) -> None:
    if any(size % num_groups for size in sizes):
        raise ValueError(f"parts of {tuple(sizes)} rows cannot be divided into {num_groups} groups")


def _check_placeholders(theirs: str, ours: str) -> None:
    if patterns.placeholders(theirs) != patterns.placeholders(ours):
        raise ValueError(f"{theirs!r} and {ours!r} do not have the same placeholders in the same order")


def nested(theirs: str, ours: str, table: Iterable[tuple[str, str]]) -> tuple[Rule, ...]:
    """The rules of a module that sits at ``theirs`` in a published file and at ``ours`` in a Block: pairs of names inside it."""
    return tuple(Rule(f"{theirs}.{key}", f"{ours}.{name}") for key, name in table)


def at(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules where the published names begin with ``prefix``."""
    return tuple(Rule(prefix + rule.theirs, rule.ours, rule.transform) for rule in rules)
