"""Every golden case through the public API: one test per ``component/case``.

A component's adapter is ``tests/parity/<role>/<component>.py`` with one function ``run(case)``.
"""

from pathlib import Path

import pytest

from tests.parity.adapters import ADAPTERS, adapter_of
from tests.parity.cases import Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    golden, only = metafunc.config.option.golden, metafunc.config.option.component
    if golden is None:
        reason = "no golden data: give --golden DIR or set MMBLOCKS_GOLDEN"
        metafunc.parametrize("folder", [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))])
        return
    wanted = only.split(",") if only else None
    folders = sorted(path.parent for path in Path(golden).glob("*/*/case.json"))
    folders = [folder for folder in folders if wanted is None or folder.parent.name in wanted]
    metafunc.parametrize("folder", [pytest.param(f, id=f"{f.parent.name}/{f.name}") for f in folders])


def test_golden(folder: Path) -> None:
    component = folder.parent.name
    if component not in ADAPTERS:
        pytest.skip(f"{component}: no adapter yet")
    case = Case(folder)
    adapter_of(component).run(case)
    assert not case.unseen(), f"compared with nothing: {', '.join(case.unseen())}"
