"""Options and settings for all tests."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]

OURS = "mmblocks|tests|benchmarks|examples"
"""How the names of our modules begin."""

# jaxtyping evaluates this wherever mmblocks is imported. An int will do where a float is asked for, as PEP 484 has it; ``Self``
# passes unchecked, since beartype knows it in whole classes only and is shown one method at a time.
TYPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf("
    "is_pep484_tower=True, hint_overrides=beartype.FrozenDict({beartype.typing.Self: object})))"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mmblocks")
    group.addoption(
        "--no-shape-checks",
        action="store_true",
        help="do not check the shapes and types in mmblocks' signatures (torch.compile must not meet the checks)",
    )
    group.addoption(
        "--golden",
        metavar="DIR",
        help="folder of golden cases for tests/parity; default: $MMBLOCKS_GOLDEN, else ../shared/golden beside the checkout",
    )
    group.addoption(
        "--stack",
        choices=("locked", "newest", "oldest"),
        help="the libraries that are installed: those of requirements/locked.txt, the newest, or those of requirements/oldest.txt",
    )
    group.addoption("--component", metavar="A,B", help="run only these components of the golden cases")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unchecked: runs without the checks of shapes and types in signatures")
    if config.option.stack in ("newest", "oldest"):
        # A library's own warnings are its authors' to mend; what our code does to be warned of still fails.
        config.addinivalue_line("filterwarnings", f"default:::(?!({OURS})\\b)")
    # From here on the option is the folder in use, or None where there is none.
    config.option.golden = _golden_folder(config.option.golden)
    # Tests are small and run side by side: more threads than free cores would wait for each other, for minutes.
    torch.set_num_threads(1)
    if not config.option.no_shape_checks:
        import beartype.typing  # noqa: F401  TYPE_CHECKER names it
        import jaxtyping

        hook = jaxtyping.install_import_hook("mmblocks", TYPE_CHECKER)
        config.add_cleanup(hook.uninstall)


def _golden_folder(option: str | None) -> str | None:
    """A folder that was named must be there; the default one may be missing."""
    for origin, named in (("--golden", option), ("$MMBLOCKS_GOLDEN", os.environ.get("MMBLOCKS_GOLDEN"))):
        if named:
            if not Path(named).is_dir():
                raise pytest.UsageError(f"{origin} is {named!r}; accepted: a folder of golden cases")
            return str(Path(named).resolve())
    beside = REPOSITORY.parent / "shared" / "golden"
    return str(beside) if beside.is_dir() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``unchecked`` run where the shape checks are off, and only there; all others where they are on.

    They show what a user meets: our own messages for wrong shapes and types, and compiled graphs.
    """
    wanted = config.option.no_shape_checks
    left_out = [item for item in items if (item.get_closest_marker("unchecked") is not None) != wanted]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
