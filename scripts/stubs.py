"""Writes the stubs of mmblocks and of its packages: what type checkers read of names that are imported when they are first used.

make stubs      # after a change of mmblocks/public.py
"""

from pathlib import Path

from mmblocks.public import GROUPS, MODULES, TOP

PACKAGE = Path(__file__).parents[1] / "mmblocks"
_DOC = '"""What type checkers see of the public names; written by ``make stubs``."""\n\n'


def stubs() -> dict[Path, str]:
    """Each stub and its content, whose imports ruff sorts."""
    packages = {group for group in GROUPS if "." not in group} | set(MODULES)
    top = [f"from mmblocks import {name} as {name}" for name in packages]
    top += [f"from mmblocks.{module} import {name} as {name}" for name, module in TOP.items()]
    found = {PACKAGE / "__init__.pyi": _DOC + "\n".join(sorted(top)) + "\n\n__version__: str\n"}
    for group, names in GROUPS.items():
        lines = [f"from mmblocks.{group}.{module} import {name} as {name}" for name, module in names.items()]
        found[PACKAGE / group.replace(".", "/") / "__init__.pyi"] = _DOC + "\n".join(sorted(lines)) + "\n"
    return found


if __name__ == "__main__":
    for path, content in stubs().items():
        path.write_text(content, encoding="utf-8")
