"""The contributing guide's example of adding a part is a diff that applies to this tree, and its own test passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFF = re.search(r"^```diff\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def changed_tree(tmp_path: Path) -> Path:
    """A copy of the repository with the diff applied."""
    for name in ("mmblocks", "docs", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for path, hunks in _files(DIFF):
        _apply(tmp_path / path, hunks)
    return tmp_path


def test_example_is_short():
    assert len(DIFF.splitlines()) <= 82


def test_example_passes_its_test(changed_tree: Path):
    new_tests = [path for path, _ in _files(DIFF) if path.startswith("tests/")]
    assert new_tests
    _run(changed_tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *new_tests)


def test_example_passes_the_linter_and_the_contract(changed_tree: Path):
    new_code = [path for path, _ in _files(DIFF) if path.endswith(".py")]
    _run(changed_tree, "-m", "ruff", "check", "--no-cache", *new_code)
    _run(changed_tree, "-m", "ruff", "format", "--no-cache", "--check", *new_code)
    _run(changed_tree, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


def _run(folder: Path, *arguments: str) -> None:
    """Runs python in ``folder``, with its own copy of the package first on the path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _files(diff: str) -> list[tuple[str, str]]:
    """(path, hunks) of each file of a unified diff."""
    pieces = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


def _apply(path: Path, hunks: str) -> None:
    """Replaces what each hunk takes away by what it brings; a new file comes as one hunk that takes nothing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
        lines = [line if line else " " for line in hunk.splitlines()]
        old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        if old:
            assert text.count(old) == 1, f"{path.name} has changed: the guide's diff does not apply any more"
            text = text.replace(old, new)
        else:
            assert not text, f"{path.name} exists already: the guide adds it"
            text = new
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
