"""Building a Block from arguments that come from elsewhere, on the meta device, where tensors take no memory.

Those that come from a file are compared with the constructor's annotations first: JSON may hold any value under any name, and a
constructor that is handed a string for a number fails wherever it comes to use it, or not at all. What an annotation does not
settle passes: none, ``Any``, type variables, classes other than those named here.
"""

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from importlib import import_module
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.nn.modules import module as registration

from mmblocks.configurable import Configurable, Description, parameters

B = TypeVar("B", bound=Configurable)

_CPP_TRACE = "Exception raised from"
"""In messages of torch's that go on for a page."""

MOST_ENTRIES = 20_000
"""Modules and tensors in one Block; the largest published ones have a few thousand."""

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60

_CALLABLE: object = Callable
"""For comparisons; to a type checker it is no type."""

_MODULES = re.compile(r"(?<![\w'.])(?:\w+\.)+(?=\w)")
"""Names of modules, before those of types."""


def build(cls: type[B], arguments: dict[str, Any], origin: str, given: Collection[str]) -> B:
    """``cls(**arguments)`` without values.

    Args:
        cls: the class.
        arguments: of its constructor.
        origin: where they come from, for messages.
        given: names of those that the user hands in. All others come from a file, and are compared with their annotations; these
            only to say why the constructor fails.

    Raises:
        ValueError, TypeError, ImportError: as the constructor raises them; a ValueError, too, for anything else that it raises, for
            arguments from a file that are not what the constructor's annotations say, and where it builds more than any model has,
            as such arguments can ask for.
    """
    check_types(cls, {name: value for name, value in arguments.items() if name not in given}, origin)
    with torch.device("meta"), _limited(f"{origin} of {cls.__name__}"):
        try:
            return cls(**arguments)
        except Exception as error:  # a constructor that is handed the wrong type can fail in any way
            # What is handed in may have types that no annotation names, as long as the constructor takes them.
            check_types(cls, {name: value for name, value in arguments.items() if name in given}, "from_pretrained")
            if isinstance(error, ValueError | TypeError | ImportError) and _CPP_TRACE not in str(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{origin}: {cls.__name__} cannot be built from these arguments: {reason}") from error


def _limited(title: str) -> AbstractContextManager[Any]:
    count = 0

    def note(*entry: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_ENTRIES:
            raise ValueError(f"{title} asks for more than {MOST_ENTRIES} modules and tensors")

    stack = ExitStack()
    hooks: tuple[Callable[[Any], Any], ...] = (
        registration.register_module_module_registration_hook,
        registration.register_module_parameter_registration_hook,
        registration.register_module_buffer_registration_hook,
    )
    for register in hooks:
        stack.callback(register(note).remove)
    return stack


class _Misfit(NamedTuple):
    """What does not fit, and where: the path below the argument, such as ``[1]``."""

    path: str
    value: object
    accepted: str


def check_types(cls: type[Any], arguments: Mapping[str, Any], origin: str) -> None:
    """Compares arguments with the annotations of the constructor.

    An int will do for a float, a list for a tuple, and the reverse; a bool is no int. Numbers are finite, ints have 64 bits.

    Args:
        cls: the class that is built.
        arguments: those that come from a file.
        origin: where from, for the message.

    Raises:
        ValueError: names the class, the argument, its value, and what is accepted.
    """
    hints = _hints(cls)
    accepted = parameters(cls)
    for name, value in arguments.items():
        default = accepted[name].default
        if type(value) is type(default) and value == default:
            continue  # be it what the annotation says or not
        misfit = next(_endless(value, ""), None) or _misfit(value, hints.get(name, Any), "")
        if misfit is not None:
            found = f"{name}{misfit.path} is {_SHORT.repr(misfit.value)}"
            raise ValueError(f"{origin} of {cls.__name__}: {found}; accepted: {misfit.accepted}")


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The constructor's annotations and its shorthand's, but for those that cannot be evaluated here, which say nothing."""
    shorthand = cls.shorthand if issubclass(cls, Configurable) else None
    short = {} if shorthand is None else inspect.signature(shorthand, eval_str=True).parameters
    shared = {name: each.annotation for name, each in short.items() if each.annotation is not each.empty}
    try:
        return shared | get_type_hints(cls.__init__)
    except Exception:  # whatever evaluating an annotation may raise
        found: dict[str, Any] = dict(shared)
        for name, annotation in cls.__init__.__annotations__.items():
            one = type("One", (), {"__annotations__": {name: annotation}})
            with suppress(Exception):
                found |= get_type_hints(one, globalns=vars(import_module(cls.__module__)))
        return found


def _endless(value: object, path: str) -> Iterator[_Misfit]:
    """Numbers that ``save_pretrained`` writes nowhere, wherever they stand."""
    if isinstance(value, float) and not math.isfinite(value):
        yield _Misfit(path, value, "a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield _Misfit(path, value, "an int of 64 bits")
    else:
        for key, item in _items(value):
            yield from _endless(item, f"{path}[{key!r}]")


def _items(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _misfit(value: object, annotation: object, path: str) -> _Misfit | None:
    """The first part of a value that does not fit."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _misfit(value, inner[0], path)
    if origin in (Union, UnionType):
        found = [_misfit(value, one, path) for one in inner]
        if None in found:
            return None
        deeper = [misfit for misfit in found if misfit is not None and misfit.path != path]
        return deeper[0] if len(deeper) == 1 else _Misfit(path, value, " or ".join(map(_named, inner)))
    if origin is Literal:
        fits = any(type(value) is type(one) and value == one for one in inner)
        return None if fits else _Misfit(path, value, ", ".join(map(repr, inner)))
    plain = annotation if origin is None else origin
    if not isinstance(plain, type):
        return None
    if not _is_a(value, plain):
        return _Misfit(path, value, _named(annotation))
    return next(_inside(value, plain, inner, annotation, path), None)


def _inside(value: object, plain: type, inner: tuple[Any, ...], annotation: object, path: str) -> Iterator[_Misfit]:
    """What of the entries of a list or dict does not fit."""
    if plain is tuple and inner and inner[-1] is not Ellipsis and isinstance(value, list | tuple):
        kinds: Iterable[object] = inner
        if len(value) != len(inner):
            yield _Misfit(path, value, _named(annotation))
            return
    elif isinstance(value, Mapping) and len(inner) == 2:
        kinds = [inner[1]] * len(value)
    elif isinstance(value, list | tuple) and inner:
        kinds = [inner[0]] * len(value)
    else:
        return
    for (key, item), kind in zip(_items(value), kinds, strict=False):
        misfit = _misfit(item, kind, f"{path}[{key!r}]")
        if misfit is not None:
            yield misfit


def _is_a(value: object, kind: type) -> bool:
    """Whether a value is of a plain type; of one that is not known here any value is."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    if kind in (list, tuple, Sequence, MutableSequence):
        return isinstance(value, list | tuple)
    if kind in (dict, Mapping, MutableMapping):
        return isinstance(value, Mapping)
    if issubclass(kind, Description):
        return isinstance(value, kind)
    if issubclass(kind, nn.Module):  # of whatever class: parts are told apart by what they can do
        return isinstance(value, nn.Module)
    return callable(value) if kind is _CALLABLE else True


def _named(annotation: object) -> str:
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else _MODULES.sub("", str(annotation))
