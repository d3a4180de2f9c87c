"""Patterns of tensor names: ``{}`` stands for an index, ``{name}`` for a name without dots, ``*`` at the end for the rest."""

import re
from functools import cache

_PLACEHOLDER = re.compile(r"\{\}|\{name\}|\*")


def placeholders(pattern: str) -> list[str]:
    """The placeholders in their order.

    Raises:
        ValueError: a ``*`` that is not the end of the pattern.
    """
    found = _PLACEHOLDER.findall(pattern)
    if "*" in pattern[:-1]:
        raise ValueError(f"pattern {pattern!r}: '*' stands for the rest of a name, so it can only be the end")
    return found


def match(pattern: str, key: str) -> tuple[str, ...] | None:
    """What the placeholders stand for where ``key`` fits, else None."""
    found = _compiled(pattern).fullmatch(key)
    return found.groups() if found else None


def fill(pattern: str, values: tuple[str, ...]) -> str:
    """The name that a pattern makes of the values."""
    remaining = iter(values)
    return _PLACEHOLDER.sub(lambda _: next(remaining), pattern)


def num_spelled_out(pattern: str, key: str, values: tuple[str, ...]) -> int:
    """How many characters of ``key`` a pattern that matched it names, rather than leaves to its ``*``."""
    return len(key) - len(values[-1]) if pattern.endswith("*") else len(key)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    expression = re.escape(pattern)
    for placeholder, found in (("{}", r"(\d+)"), ("{name}", r"([^.]+)"), ("*", "(.+)")):
        expression = expression.replace(re.escape(placeholder), found)
    return re.compile(expression, re.DOTALL)
