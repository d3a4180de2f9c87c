"""Parts of a model by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from torch import nn

from mmblocks.roles import Embedder, Head, SpanHead, check_role

T = TypeVar("T")


class Parts(nn.Module, Generic[T]):
    """Parts by name. Modules are registered under their names; other objects that play a role are welcome too.

    ``parts["vision"] = part`` adds a part, or replaces the one of that name.

    Args:
        parts: the first ones.
        check: is called with the name and the part before one is added; it refuses what cannot play the role.

    Raises:
        ValueError: for a name that is no identifier, or that a module already uses for something else.
    """

    def __init__(self, parts: Mapping[str, T], check: Callable[[str, T], None] | None = None) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()
        self._check = check
        for name, part in parts.items():
            self[name] = part

    def __setitem__(self, name: str, part: T) -> None:
        is_new = name not in self._names
        if is_new and (not name.isidentifier() or hasattr(self, name)):  # whatever nn.Module has of its own
            raise ValueError(f"a part is named {name!r}; accepted: an identifier that nn.Module does not use itself")
        if self._check is not None:
            self._check(name, part)
        if not is_new:
            delattr(self, name)  # a module gives way to an object that is none, too
        setattr(self, name, part)
        if is_new:
            self._names += (name,)

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(f"no part {name!r}; there are {list(self._names)}")
        part: T = getattr(self, name)  # where __init__ has set it, so that nn.Module knows its weights
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def keys(self) -> tuple[str, ...]:
        """The names, in order."""
        return self._names

    def items(self) -> Iterator[tuple[str, T]]:
        """(name, part), in order."""
        return ((name, self[name]) for name in self._names)


def check_input(name: str, part: object) -> None:
    """Refuses an input that a model could be made of, and could do nothing with."""
    check_role(part, Embedder, f"inputs[{name!r}]", "forward")


def check_output(name: str, part: object) -> None:
    """Likewise for an output."""
    check_role(part, SpanHead if isinstance(part, SpanHead) else Head, f"outputs[{name!r}]")
