"""Canvases of handwritten digits in a grid of cells, what they say, and questions about them."""

from typing import NamedTuple

import torch

from digits import Digits, augment

CELL = 28
SIZES = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
GAPS = 0.25
"""Share of cells that hold no digit."""

NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


class Canvas(NamedTuple):
    """An image of several digits, and what each cell holds: a digit, or None for a gap.

    Attributes:
        pixels: (3, 28 * rows, 28 * columns), in [0, 1].
        cells: row by row.
    """

    pixels: torch.Tensor
    cells: list[list[int | None]]

    @property
    def words(self) -> list[str]:
        """What the canvas says, cell by cell: "7", or "-" for a gap."""
        return [_word(cell) for row in self.cells for cell in row]

    @property
    def transcript(self) -> str:
        """What the canvas says: "1 - 7 / 3 9 -"."""
        return " / ".join(" ".join(_word(cell) for cell in row) for row in self.cells)

    @property
    def places(self) -> str:
        """Each digit and its place: "1=11 7=13 3=21 9=22"."""
        cells = [(cell, row, column) for row, line in enumerate(self.cells, 1) for column, cell in enumerate(line, 1)]
        return " ".join(f"{cell}={row}{column}" for cell, row, column in cells if cell is not None)


def make_canvases(
    digits: Digits, count: int, generator: torch.Generator, *, sizes: list[tuple[int, int]] = SIZES, augmented: bool = False
) -> list[Canvas]:
    """Canvases of digits drawn at random, of all sizes (rows, columns) in turn."""
    shapes = [sizes[number % len(sizes)] for number in range(count)]
    num_cells = sum(rows * columns for rows, columns in shapes)
    chosen = torch.randint(len(digits.labels), (num_cells,), generator=generator)
    is_gap = torch.rand(num_cells, generator=generator) < GAPS
    pixels = digits.pixels[chosen]
    if augmented:
        pixels = augment(pixels, generator, degrees=10, stretch=0.12, shift=1, bend=1)
    pixels = pixels * ~is_gap[:, None, None, None]
    held = [None if gap else label for gap, label in zip(is_gap.tolist(), digits.labels[chosen].tolist(), strict=True)]
    canvases, at = [], 0
    for rows, columns in shapes:
        cells = pixels[at : at + rows * columns].unflatten(0, (rows, columns))
        whole = cells.permute(2, 0, 3, 1, 4).reshape(3, rows * CELL, columns * CELL)
        canvases.append(Canvas(whole, [held[at + row * columns : at + (row + 1) * columns] for row in range(rows)]))
        at += rows * columns
    return canvases


class Question(NamedTuple):
    """A question about a canvas, its answer, and what is written down on the way to it."""

    kind: str
    text: str
    answer: str
    working: str = ""


def ask(canvas: Canvas, kind: str, generator: torch.Generator) -> Question | None:
    """A question of a kind ("place", "count", "where", "relation"), at random; None where the canvas allows none.

    "where" and "relation" ask of a digit that the canvas holds once, a relation only where the neighbour is a digit. The
    working of a relation is the place of the one and the place of the other: "4=12 11=" on the way to what is left of 4,
    where the 4 is in row 1, column 2.
    """
    cells = canvas.cells
    if kind == "count":
        return Question(kind, "how many digits?", str(sum(word != "-" for word in canvas.words)))
    if kind == "place":
        row, column = _choose(len(cells), generator), _choose(len(cells[0]), generator)
        return Question(kind, f"row {row + 1} column {column + 1}?", _word(cells[row][column]))
    places = [(row, column) for row in range(len(cells)) for column in range(len(cells[0]))]
    once = [(row, column) for row, column in places if canvas.words.count(str(cells[row][column])) == 1]
    if kind == "where":
        possible = [
            Question(kind, f"where is {digit}?", f"{row + 1}{column + 1}", f"{digit}=")
            for row, column in once
            if (digit := cells[row][column]) is not None
        ]
    else:
        possible = []
        for row, column in once:
            for relation, (down, right) in NEIGHBOURS.items():
                r, c = row + down, column + right
                if (r, c) in places and cells[r][c] is not None:
                    digit = cells[row][column]
                    working = f"{digit}={row + 1}{column + 1} {r + 1}{c + 1}="
                    possible.append(Question(kind, f"{relation} {digit}?", _word(cells[r][c]), working))
    return possible[_choose(len(possible), generator)] if possible else None


def _word(cell: int | None) -> str:
    return "-" if cell is None else str(cell)


def _choose(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
