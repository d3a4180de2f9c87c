"""Every python block of the README and of the documentation runs, page by page, as a reader would run it.

A block that cannot run here says why, in a comment before it: ``<!-- not run: needs the published weights -->``.
"""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*$")


def blocks(page: str) -> list[str]:
    """The python blocks of a page, each moved to its own lines so that errors point into the page."""
    found = []
    for match in BLOCK.finditer(page):
        if NOT_RUN.search(page[: match.start()]):
            continue
        line = page.count("\n", 0, match.start("code"))
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append("\n" * line + code)
    return found


WITH_CODE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


# Python warns of a fork beside other threads, such as torch's, from 3.12 on; 3.14 no longer forks by itself.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for code in blocks(page.read_text(encoding="utf-8")):
        exec(compile(code, str(page), "exec"), namespace)


def test_readme_has_code():
    assert REPOSITORY / "README.md" in WITH_CODE


def test_blocks_are_found():
    shown = "text\n```python\nx = 1\n```\n"
    hidden = "<!-- not run: needs weights -->\n```python\ny = 1\n```\n"
    indented = "    ```python title='t'\n    z = 2\n    ```\n"
    assert blocks(shown + hidden + indented) == ["\n\nx = 1\n", "\n" * 9 + "z = 2\n"]


def test_a_skip_needs_a_reason():
    assert blocks("<!-- not run: -->\n```python\nx\n```\n")
