"""What torch says of sizes that cannot be, as errors that name a part and its arguments."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

_OF_SIZES = re.compile(r"negative|expects std|Expected cond|must|should be|has to be|NaN|invalid|greater than|divisible")
"""In messages of torch's that are about sizes, and not about memory or devices."""

_KINDS = (RuntimeError, ZeroDivisionError, IndexError, AssertionError, ValueError)


def with_names(constructor: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose errors of torch's, and of sums with sizes of 0, are ``ValueError`` with the class and what it was given.

    Errors that say already what is accepted stay as they are, and so do those that are no matter of sizes.
    """

    @wraps(constructor)
    def call(self: object, *args: Any, **arguments: Any) -> None:  # of any constructor
        try:
            constructor(self, *args, **arguments)
        except _KINDS as error:
            odd = {name: value for name, value in arguments.items() if _is_odd(value)}
            if not _is_of_sizes(error, odd):
                raise
            given = odd or {name: value for name, value in arguments.items() if _is_size(value)}
            listed = ", ".join(f"{name} is {value}" for name, value in given.items())
            wanted = "sizes of 1 or more" if odd else "sizes that go together"
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{type(self).__name__} cannot be built: {listed}; accepted: {wanted} ({reason})") from error

    return call


def _is_of_sizes(error: Exception, odd: Mapping[str, object]) -> bool:
    if isinstance(error, ZeroDivisionError | IndexError):
        return bool(odd)
    message = str(error)
    return "accepted" not in message and _OF_SIZES.search(message) is not None and _is_of_torch(error)


def _is_of_torch(error: Exception) -> bool:
    """Whether it was raised in torch or timm, rather than by a part itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, RuntimeError) or module.partition(".")[0] in ("torch", "timm")


def _is_size(value: object) -> bool:
    sides = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(side, int) and not isinstance(side, bool) for side in sides)


def _is_odd(value: object) -> bool:
    """No number of anything: below 1, not a number, or no sides at all."""
    if isinstance(value, float):
        return not value >= 0
    return _is_size(value) and (value in ((), []) or min(value if isinstance(value, tuple | list) else (value,)) < 1)
