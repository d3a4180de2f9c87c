"""What importing the package costs, and which libraries it leaves alone."""

import ast
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import mmblocks
from mmblocks.public import GROUPS, all_names, find
from scripts.stubs import stubs
from tests.conftest import REPOSITORY

PACKAGE = Path(__file__).parents[2] / "mmblocks"
HEAVY = {"accelerate", "diffusers", "open_clip", "peft", "timm", "transformers", "triton", "vector_quantize_pytorch"}
PARTS = {"connectors", "embedders", "encoders", "heads", "pixels", "tokenizers", "trunks"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_quiet(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _quiet() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}


def test_import_leaves_heavy_libraries_alone():
    loaded = _run("import mmblocks, sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert HEAVY.isdisjoint(loaded.split())


def test_import_costs_what_torch_costs():
    """At most 1.1 times as much. The best of five turns each, taken in turn, so that a busy machine slows both."""
    seconds: dict[str, list[float]] = {"torch": [], "mmblocks": []}
    for _ in range(5):
        for name, taken in seconds.items():
            taken.append(float(_run(f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)")))
    assert min(seconds["mmblocks"]) <= 1.1 * min(seconds["torch"]), seconds


def test_version():
    try:
        installed = version("mmblocks")
    except PackageNotFoundError:
        pytest.skip("the package is not installed, and so has no version")
    assert mmblocks.__version__ == installed


@pytest.mark.parametrize("name", [name for name in mmblocks.__all__ if name != "__version__"])
def test_public_name_is_there(name: str):
    assert getattr(mmblocks, name) is not None
    assert name in dir(mmblocks)


def test_every_public_name_is_documented():
    pages = [line.split() for page in (PACKAGE.parent / "docs").glob("*.md") for line in page.read_text().splitlines()]
    documented = [words[1] for words in pages if words and words[0] == ":::"]
    homes = set(all_names().values())
    assert sorted(home for home in homes if not any(f"{one}.".startswith(f"{home}.") for one in documented)) == []


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_name"):
        mmblocks.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_libraries_where_they_belong(path: Path):
    """Heavy libraries: at the top of a part that is made of them, or inside a function. ``ops`` knows torch alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    folder = path.relative_to(PACKAGE).parts[0]
    if folder not in PARTS and path.name != "triton.py":  # which is imported when a kernel runs
        assert _libraries(tree.body).isdisjoint(HEAVY)
    if folder == "ops":
        shapes = {"jaxtyping"}
        allowed = {"torch", "triton", "mmblocks"} | shapes | sys.stdlib_module_names
        assert _libraries(ast.walk(tree)) <= allowed


def _libraries(nodes) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_type_checkers_see_the_same_public_names() -> None:
    for path, content in stubs().items():
        assert _imported(path.read_text(encoding="utf-8")) == _imported(content), "run make stubs"


def _imported(stub: str) -> set[tuple[str, str]]:
    nodes = (node for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.ImportFrom))
    return {(alias.name, node.module) for node in nodes for alias in node.names}


@pytest.mark.parametrize("name", all_names())
def test_grouped_name_is_there(name: str) -> None:
    assert find(name) is not None


@pytest.mark.parametrize("group", GROUPS)
def test_no_public_name_is_that_of_a_module_beside_it(group: str) -> None:
    """Python puts a module in the place of such a name as soon as it is imported."""
    folder = REPOSITORY / "mmblocks" / group.replace(".", "/")
    assert set(GROUPS[group]).isdisjoint(path.stem for path in folder.iterdir())


@pytest.mark.parametrize(("name", "place"), [("IBQ", "mmblocks.tokenizers"), ("SimVQ", "mmblocks.tokenizers.bottlenecks")])
def test_a_name_that_stood_at_the_top_says_where_it_is(name: str, place: str) -> None:
    with pytest.warns(FutureWarning, match=rf"mmblocks\.{name} is {place}\.{name} now; the short name goes with version 0\.3"):
        assert getattr(mmblocks, name) is find(name)
