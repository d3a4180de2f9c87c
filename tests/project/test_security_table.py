"""The table in docs/security.md names checks and tests that are there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| value ")
]


def names(cell: str) -> list[str]:
    """What stands in code, with what a name that begins with a dot or ``::`` leaves out of the one before it."""
    found: list[str] = []
    for name in re.findall(r"`([^`]+)`", cell):
        if name.startswith("."):
            name = found[-1].rpartition(".")[0] + name
        if name.startswith("::"):
            name = found[-1].partition("::")[0] + name
        found.append(name)
    return found


def resolved(path: str) -> object:
    """What is called so, from the module on."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(["mmblocks", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module of mmblocks: {path}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_row(row):
    assert len(row) == 5
    checks = [name for name in names(row[2]) if name not in ("weights_only", "TokenizerRecipe", "tokenizers")]
    assert checks or "huggingface_hub" in row[2] or "Pillow" in row[2]
    for path in checks:
        assert callable(resolved(path)), path
    tests = names(row[4])
    assert tests
    for name in tests:
        file, _, test = name.partition("::")
        assert not test or f"def {test}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), name
        assert (REPOSITORY / "tests" / file).is_file()


def test_there_are_rows():
    assert len(ROWS) > 40
