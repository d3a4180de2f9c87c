"""Parts of a model by name."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from torch import nn

T = TypeVar("T")


class Parts(nn.Module, Generic[T]):
    """Parts by name. Modules are registered under their names; other objects that play a role are welcome too.

    Raises:
        ValueError: for a name that is no identifier, or that a module already uses for something else.
    """

    def __init__(self, parts: Mapping[str, T]) -> None:
        super().__init__()
        for name, part in parts.items():
            if not name.isidentifier() or hasattr(self, name):  # whatever nn.Module has of its own
                raise ValueError(f"a part is named {name!r}; accepted: an identifier that nn.Module does not use itself")
            setattr(self, name, part)
        self._names = tuple(parts)

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
