"""What other libraries have called differently over time, under all its names.

A library that renames an argument warns of the old name for some releases and then refuses it, while its oldest release that
pyproject.toml allows knows no other. The name to use is read off the function at hand, never off a version number.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

TRANSFORMERS_CACHE = ("cache", "past_key_values")
"""The key/value cache of a transformers model, newest name first."""


@lru_cache(maxsize=256)
def parameter_name(function: Callable[..., Any], names: tuple[str, ...]) -> str:
    """The first of ``names`` that a function has as a parameter.

    Args:
        function: its signature is read through decorators.
        names: of one parameter, newest first.

    Raises:
        TypeError: a function that has none of them.
    """
    known = inspect.signature(function).parameters
    for name in names:
        if name in known:
            return name
    raise TypeError(f"{function.__qualname__} takes {', '.join(known)}; accepted: a function that takes {' or '.join(names)}")
