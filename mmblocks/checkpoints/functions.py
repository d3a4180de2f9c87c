"""Functions that a config.json names: found among what is imported already, and never imported.

Whoever writes a config.json must not choose which code runs. A name may stand for a rule of mmblocks (masks, positions, routes), or
for a function of a module of the user's that the program has imported; for nothing of Python's own library and of installed
packages.
"""

import sys
import sysconfig
from pathlib import Path
from types import FunctionType, ModuleType

RULES = ("mmblocks.sequence.masks", "mmblocks.sequence.positions", "mmblocks.trunks.routing")
"""Modules of mmblocks whose functions are rules over the token table."""

_INSTALLED = tuple({Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib", "platstdlib")})
_PACKAGES = {"site-packages", "dist-packages"}
"""Folders of packages, wherever they stand."""


def find_function(name: object) -> FunctionType | None:
    """The function ``module.name`` of a module that is imported; None where there is none, or none to trust.

    Only functions at the top of a module are found: no methods, no classes, no lambdas, nothing that was imported from elsewhere.
    """
    if not isinstance(name, str):
        return None
    module_name, _, own = name.rpartition(".")
    module = sys.modules.get(module_name)
    if module is None or not _is_trusted(module_name, module):
        return None
    found = vars(module).get(own)
    if not isinstance(found, FunctionType) or (found.__module__, found.__qualname__) != (module_name, own):
        return None
    return found


def _is_trusted(name: str, module: ModuleType) -> bool:
    top = name.partition(".")[0]
    if top == "mmblocks":
        return name in RULES
    file = vars(module).get("__file__")
    if top in sys.stdlib_module_names or (file is None and name != "__main__"):
        return False
    if file is None:
        return True
    path = Path(file).resolve()
    return not _PACKAGES & set(path.parts) and not any(path.is_relative_to(folder) for folder in _INSTALLED)
