"""Options and settings for all tests."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]


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
    group.addoption("--component", metavar="A,B", help="run only these components of the golden cases")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unchecked: runs without the checks of shapes and types in signatures")
    # From here on the option is the folder in use, or None where there is none.
    config.option.golden = _golden_folder(config.option.golden)
    # One thread for each of several processes: more threads than cores would wait for each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    if not config.option.no_shape_checks:
        import jaxtyping

        hook = jaxtyping.install_import_hook("mmblocks", "beartype.beartype")
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
