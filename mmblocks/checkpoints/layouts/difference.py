"""How the tensors of a file differ from those of a module, short enough to read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

MOST_GROUPS = 10
"""Groups shown per kind of difference; the rest is counted."""

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
"""An integer that is a whole component of a key."""


@dataclass(frozen=True)
class Difference:
    """What does not match; false where everything does.

    Attributes:
        missing: expected, but not there: key -> expected shape.
        unexpected: there, but not expected: key -> shape found.
        misshapen: there, with another shape: key -> shapes found and expected.

    Where a tensor cannot even be converted, the reason stands in place of the shape found.
    """

    missing: Mapping[str, Shape]
    unexpected: Mapping[str, Shape | str]
    misshapen: Mapping[str, tuple[Shape | str, Shape]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        misshapen = {key: f"found {found}, expected {shape}" for key, (found, shape) in self.misshapen.items()}
        kinds = {
            "missing": {key: str(shape) for key, shape in self.missing.items()},
            "unexpected": {key: str(shape) for key, shape in self.unexpected.items()},
            "misshapen": misshapen,
        }
        return "\n".join(_section(kind, notes) for kind, notes in kinds.items() if notes) or "no difference"


def compare(expected: Mapping[str, Shape], found: Mapping[str, Shape | str]) -> Difference:
    """``found`` against ``expected``, both key -> shape; a text is the reason why a tensor could not be converted."""
    misshapen = {key: (shape, expected[key]) for key, shape in found.items() if key in expected and shape != expected[key]}
    return Difference(
        missing={key: shape for key, shape in expected.items() if key not in found},
        unexpected={key: shape for key, shape in found.items() if key not in expected},
        misshapen=misshapen,
    )


def group(notes: Mapping[str, str]) -> list[str]:
    """Lines that name every key, those that differ only in their indices together.

    ``layers.0.weight: (4, 4)`` and ``layers.1.weight: (4, 4)`` become ``layers.{0..1}.weight (2): (4, 4)``.
    """
    groups: dict[tuple[str, str], list[list[int]]] = {}
    for key, note in notes.items():
        indices = [int(index) for index in _INDEX.findall(key)]
        groups.setdefault((_INDEX.sub("{}", key), note), []).append(indices)
    return [_line(template, note, members) for (template, note), members in groups.items()]


def _line(template: str, note: str, members: list[list[int]]) -> str:
    columns = iter(zip(*members, strict=True))
    name = re.sub(r"\{\}", lambda _: _runs(next(columns)), template)
    count = f" ({len(members)})" if len(members) > 1 else ""
    return f"{name}{count}: {note}"


def _runs(numbers: Iterable[int]) -> str:
    """``{0..3,7}``, or the bare number where there is only one."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
    return text if text.isdecimal() else f"{{{text}}}"


def _section(kind: str, notes: Mapping[str, str]) -> str:
    lines = group(notes)
    more = [f"... and {len(lines) - MOST_GROUPS} more groups"] if len(lines) > MOST_GROUPS else []
    return "\n".join([f"{kind} ({len(notes)}):", *(f"  {line}" for line in lines[:MOST_GROUPS] + more)])
