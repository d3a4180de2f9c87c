"""Fronts as JSON: data classes of mmblocks, by their public names."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mmblocks import public

CLASS = "class"
"""The entry that names a value's class."""


def encoded(value: object, name: str) -> Any:
    """A value as JSON.

    Raises:
        TypeError: it holds something that has no public name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [encoded(one, f"{name}[{index}]") for index, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): encoded(one, f"{name}[{key!r}]") for key, one in value.items()}
    own = type(value)
    if not is_dataclass(value) or public.home(own.__name__) != own.__module__:
        accepted = "numbers, strings, lists, and data classes of mmblocks; hand a front of your own in with front="
        raise TypeError(f"{name} is a {own.__name__}, which cannot be written; accepted: {accepted}")
    written = {one.name: encoded(getattr(value, one.name), f"{name}.{one.name}") for one in fields(value) if one.init}
    return {CLASS: own.__name__, **written}


def decoded(value: Any, name: str) -> Any:
    """The inverse; lists are tuples.

    Raises:
        ValueError: a class that is no data class of mmblocks, or values that it does not take.
    """
    if isinstance(value, list):
        return tuple(decoded(one, f"{name}[{index}]") for index, one in enumerate(value))
    if not isinstance(value, dict):
        return value
    given = {key: decoded(one, f"{name}.{key}") for key, one in value.items() if key != CLASS}
    if CLASS not in value:
        return given
    cls = public.find(value[CLASS]) if isinstance(value[CLASS], str) and public.home(value[CLASS]) else None
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ValueError(f"{name} is of class {value[CLASS]!r}; accepted: data classes of mmblocks")
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
