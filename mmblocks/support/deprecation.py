"""Names that this library has changed: the former ones work until version 0.3, with a warning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LAST = "the former name goes with version 0.3"


def former_method(old: str, new: str) -> Callable[..., Any]:
    """What a class holds under a method's former name: it warns, and calls the method.

    walk = former_method("walk", "sample")
    """

    def call(self: object, *args: object, **keywords: object) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is {new} now; {_LAST}", FutureWarning, stacklevel=2)
        return getattr(self, new)(*args, **keywords)  # of whatever class holds it

    call.__name__, call.__doc__ = old, f"Former name of ``{new}``."
    return call


def former_keywords(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function take keywords by their former names: ``@former_keywords(taps="trajectory")``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            for old in renamed.keys() & keywords.keys():
                new = renamed[old]
                if new in keywords:
                    raise TypeError(f"{function.__name__} was given {old} and {new}; accepted: {new}")
                warnings.warn(f"{old} of {function.__name__} is {new} now; {_LAST}", FutureWarning, stacklevel=2)
                keywords[new] = keywords.pop(old)
            return function(*args, **keywords)

        return call

    return decorate
