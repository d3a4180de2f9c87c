"""What a command says: results, progress and errors."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

OUT = Console(soft_wrap=True)
ERR = Console(stderr=True, soft_wrap=True)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors that the user can do something about become text and an exit code; others are bugs, and keep their traceback.

    Warnings become a line each.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        ERR.print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        ERR.print("interrupted; the same command goes on", markup=False)
        raise typer.Exit(130) from error


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """The text alone: where in the code it arose helps no user of a command."""
    ERR.print(f"warning: {message}", markup=False, highlight=False)


def check_target(target: Path, force: bool) -> None:
    """Refuses to write a file where a folder is, or, without ``force``, anything else."""
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; accepted: the file to write")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; --force replaces it")


def show(value: object, as_json: bool, *tables: Table) -> None:
    """The result: JSON, or tables and text."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return
    for table in tables:
        OUT.print(table)
    if not tables:
        OUT.print(value, markup=False, highlight=False)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """None is shown as a dash."""
    found = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        found.add_row(*("-" if cell is None else str(cell) for cell in row))
    return found


@contextmanager
def progress(title: str) -> Iterator["Bar"]:
    """A bar on the standard error, in a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal, transient=True) as bars:
        yield Bar(bars, title)


class Bar:
    """One bar."""

    def __init__(self, bars: "Progress", title: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=None)

    def at(self, number: int, total: int, text: str | None = None) -> None:
        """How far it is, and what is being done."""
        self._bars.update(self._task, completed=number, total=total)
        if text is not None:
            self._bars.update(self._task, description=text)
