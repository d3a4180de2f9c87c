"""Building a Block from arguments that come from elsewhere, on the meta device, where tensors take no memory."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import torch
from torch.nn.modules import module as registration

from mmblocks.checkpoints import annotations
from mmblocks.configurable import Configurable

B = TypeVar("B", bound=Configurable)

_CPP_TRACE = "Exception raised from"
"""In messages of torch's that go on for a page."""

MOST_ENTRIES = 20_000
"""Modules and tensors in one Block; the largest published ones have a few thousand."""


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
    annotations.check(cls, {name: value for name, value in arguments.items() if name not in given}, origin)
    with torch.device("meta"), _limited(f"{origin} of {cls.__name__}"):
        try:
            return cls(**arguments)
        except Exception as error:  # a constructor that is handed the wrong type can fail in any way
            # What is handed in may have types that no annotation names, as long as the constructor takes them.
            annotations.check(cls, {name: value for name, value in arguments.items() if name in given}, "from_pretrained")
            if isinstance(error, ValueError | TypeError | ImportError) and _CPP_TRACE not in str(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{origin}: {cls.__name__} cannot be built from these arguments: {reason}") from error


def _limited(title: str) -> AbstractContextManager[Any]:
    count = 0

    def note(*entry: Any) -> None:
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
