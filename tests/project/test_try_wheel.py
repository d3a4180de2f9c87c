"""What a wheel must hold, and what of the README it runs; ``make try-wheel`` installs a real one."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import REPOSITORY
from tests.project.try_wheel import check_contents, readme_code

WHOLE = ["mmblocks/__init__.py", "mmblocks/__init__.pyi", "mmblocks/py.typed", "mmblocks/block.py"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "mmblocks").mkdir()
    for name in WHOLE:
        (tmp_path / name).touch()
    return tmp_path


def wheel_of(folder: Path, names: list[str]) -> Path:
    wheel = folder / "mmblocks-0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name in [*names, "mmblocks-0.dist-info/METADATA"]:
            archive.writestr(name, "")
    return wheel


def test_a_whole_wheel_passes(repository: Path):
    check_contents(wheel_of(repository, WHOLE), repository)


@pytest.mark.parametrize("name", WHOLE)
def test_a_wheel_that_lacks_a_file(repository: Path, name: str):
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        check_contents(wheel_of(repository, [other for other in WHOLE if other != name]), repository)


def test_a_wheel_with_more_than_the_package(repository: Path):
    with pytest.raises(ValueError, match=r"holds .*tests/conftest\.py"):
        check_contents(wheel_of(repository, [*WHOLE, "tests/conftest.py"]), repository)


def test_code_stands_in_its_own_lines():
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    lines = readme_code().splitlines()
    assert sum(line != "" for line in lines) > 20
    assert all(line in ("", shown) for line, shown in zip(lines, page, strict=True))
