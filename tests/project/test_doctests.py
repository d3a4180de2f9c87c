"""Examples in docstrings run as they stand there, module by module, each in a namespace of its own.

Where a module or its example needs an optional library that is not installed, it is skipped.
"""

import ast
import doctest
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
import torch

from mmblocks.public import all_names, find
from tests.conftest import REPOSITORY

OPTIONAL = {"accelerate", "peft", "rich", "tokenizers", "transformers", "triton", "typer"}
PUBLIC = {name: find(name) for name in all_names()}
DESCRIBED = [name for name, found in PUBLIC.items() if isinstance(found, type | FunctionType)]
"""Classes and functions; the other public names are values and types."""

PACKAGE = REPOSITORY / "mmblocks"
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def examples_in(path: Path) -> Iterator[doctest.DocTest]:
    """The examples of a file, docstring by docstring: read from the source, since wrappers of methods hide where they stand."""
    source = path.read_text(encoding="utf-8")
    if ">>>" not in source:
        return
    parser = doctest.DocTestParser()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            name = getattr(node, "name", path.stem)
            found = parser.get_doctest(text, {}, name, str(path), node.body[0].lineno - 1)
            if found.examples:
                yield found


EXAMPLES = [example for path in sorted(PACKAGE.rglob("*.py")) for example in examples_in(path)]


def module_of(example: doctest.DocTest) -> str:
    parts = Path(example.filename).relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{module_of(example)}-{example.name}")
def test_example_runs(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for name in OPTIONAL & {word for part in example.examples for word in re.findall(r"^(?:from|import) (\w+)", part.source)}:
        pytest.importorskip(name)
    try:
        import_module(module_of(example))
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in OPTIONAL:
            pytest.skip(f"{error.name} is not installed")
        raise
    example.globs = {}
    failed = runner.run(example, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_public_class_or_function_has_an_example(name: str):
    shown = vars(PUBLIC[name])["__doc__"] if isinstance(PUBLIC[name], type) else PUBLIC[name].__doc__
    _, _, examples = (shown or "").partition("\n    Examples:\n")
    assert re.search(r"^        >>> ", examples, re.MULTILINE)


def test_examples_are_found_where_they_stand(tmp_path: Path):
    page = tmp_path / "page.py"
    page.write_text('class A:\n    """Doc.\n\n    >>> 1 + 1\n    3\n    """\n')
    (example,) = examples_in(page)
    assert (example.name, example.lineno + example.examples[0].lineno + 1) == ("A", 4)
    assert doctest.DocTestRunner().run(example, out=lambda said: None).failed == 1
