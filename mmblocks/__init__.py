"""mmblocks: building blocks for multimodal models. Every public name is imported when it is first used."""

import warnings
from importlib import import_module
from typing import Any

from mmblocks.public import GROUPS, MODULES, TOP, home

__all__ = [*TOP, *(group for group in GROUPS if "." not in group), *MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mmblocks")
    if name in GROUPS or name in MODULES:
        return import_module(f"mmblocks.{name}")
    if name in TOP:
        return getattr(import_module(f"mmblocks.{TOP[name]}"), name)
    module = home(name)
    if module is None:
        raise AttributeError(f"module 'mmblocks' has no attribute {name!r}")
    place = next((f"mmblocks.{group}" for group, names in GROUPS.items() if name in names), module)
    warnings.warn(f"mmblocks.{name} is {place}.{name} now; the short name goes with version 0.3", FutureWarning, stacklevel=2)
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
