"""Things by name, whatever holds them."""

from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T", covariant=True)


@runtime_checkable
class Named(Protocol[T]):
    """A dict, a ``ModuleDict``, a model's parts: names in order, and what is called so."""

    def __iter__(self) -> Iterator[str]:
        """The names."""
        ...

    def __getitem__(self, name: str, /) -> T:
        """The thing of that name."""
        ...
