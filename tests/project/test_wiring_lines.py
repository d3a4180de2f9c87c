"""The page on whole models says how many lines each is: what it says of ours is near the truth."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| ([^|]+) \| ((?:`[\w/.]+`(?:, )?)+) \| (\d+) \| \d+ \|",
    (ROOT / "docs/models.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_there_are_rows() -> None:
    assert len(ROWS) >= 12


@pytest.mark.parametrize(("files", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_lines_of_a_model(files: str, said: str) -> None:
    folder = ROOT / "mmblocks" / "models"
    places = [folder / name for name in re.findall(r"`([^`]+)`", files)]
    found = [path for place in places for path in (sorted(place.glob("*.py")) if place.is_dir() else [place])]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in found)
    assert int(said) == pytest.approx(lines, rel=0.1), "docs/models.md counts other lines"
