"""The modules that compare a component with its golden cases, in folders by role."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent

ADAPTERS = {file.stem: f"tests.parity.{file.parent.name}.{file.stem}" for file in sorted(HERE.glob("*/*.py"))}
"""By component: the module, which has one function ``run(case)``."""


def adapter_of(component: str) -> ModuleType:
    """The module of a component; the folder it lies in does not count.

    Raises:
        KeyError: there is none.
    """
    return import_module(ADAPTERS[component])
