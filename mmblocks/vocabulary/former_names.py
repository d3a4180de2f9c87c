"""What ``GridFormat`` had before it held ``CodeIds``: arguments and attributes that work until version 0.3, with a warning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from mmblocks.vocabulary.code_ids import CodeIds

T = TypeVar("T")


@runtime_checkable
class _HasCodes(Protocol):
    codes: CodeIds


def takes_former_arguments(cls: type[T]) -> type[T]:
    """Lets a class with ``codes`` take ``first_code``, ``num_codes`` and ``code_ids`` instead."""
    init: Callable[..., None] = cls.__init__

    @wraps(init)
    def call(
        self: T,
        *args: object,
        first_code: int | None = None,
        num_codes: int | None = None,
        code_ids: tuple[int, ...] | None = None,
        **new: object,
    ) -> None:
        if (first_code, num_codes, code_ids) != (None, None, None):
            _warn("first_code, num_codes, code_ids", "codes=CodeIds(...)")
            known = cast("CodeIds", new.get("codes"))  # dataclasses.replace names all fields
            size = known.num_ids if num_codes is None else num_codes
            first = known.first if first_code is None and known else first_code
            new["codes"] = CodeIds(sizes=(size,), first=None if code_ids else first, table=code_ids)
        init(self, *args, **new)

    cls.__init__ = call  # type: ignore[assignment]
    return cls


def former_attribute(old: str, new: str) -> property:
    """An attribute of ``codes`` under the name that the format itself had for it."""

    def read(self: _HasCodes) -> Any:
        _warn(old, f"codes.{new}")
        return getattr(self.codes, new)  # named where the property is made

    return property(read, doc=f"Former name of ``codes.{new}``.")


def _warn(old: str, new: str) -> None:
    message = f"GridFormat's {old} is {new} now; the former name goes with version 0.3"
    warnings.warn(message, FutureWarning, stacklevel=3)
