"""Decision records are numbered, dated, complete, and listed where readers look for them."""

import re
from datetime import date
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("*/[0-9]*.md"), key=lambda record: record.name)
INDEX = (FOLDER / "index.md").read_text(encoding="utf-8")
SECTIONS = ["Decision", "Why", "Also weighed"]


def test_numbers_are_consecutive():
    assert [int(record.name[:3]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_record_is_complete(record: Path):
    text = record.read_text(encoding="utf-8")
    number, title = re.match(r"# (\d+)\. (.+)\n", text).groups()
    day = re.search(r"^- Date: (\d{4}-\d{2}-\d{2})\b", text, re.MULTILINE)[1]
    status = re.search(r"^- Status: (accepted|proposed|superseded by .+)$", text, re.MULTILINE)[1]
    assert int(number) == int(record.name[:3])
    assert date.fromisoformat(day)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert len(text.splitlines()) <= 30
    assert f"| {number} | [{title}]({record.parent.name}/{record.name}) | {day} | {status} |" in INDEX.splitlines()


@pytest.mark.parametrize("page", ["mkdocs.yml", "docs/design.md"])
def test_every_record_is_named(page: str):
    named = re.findall(r"decisions/(\w+/\d{3}-[\w-]+\.md)", (REPOSITORY / page).read_text(encoding="utf-8"))
    assert set(named) == {f"{record.parent.name}/{record.name}" for record in RECORDS}
