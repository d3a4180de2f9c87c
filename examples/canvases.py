"""Canvases of handwritten digits in a grid of cells, what they say, and questions about them."""

from typing import NamedTuple

import torch

from digits import Digits, augment

CELL = 28
SIZES = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
GAPS = 0.25
"""Share of cells that hold no digit."""

PLACES = ("abc", "def", "ghi")
"""Names of the cells, row by row."""

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
        """What stands where: "1a1 -b- 7c7 / 3d3 9e9 -f-". What a place holds follows its name, and its name what it holds."""
        words = [[_word(cell) for cell in line] for line in self.cells]
        lines = [[f"{word}{PLACES[r][c]}{word}" for c, word in enumerate(line)] for r, line in enumerate(words)]
        return " / ".join(" ".join(line) for line in lines)


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
    working of a relation is the digit's place and its neighbour's: "4b a" on the way to what is left of the 4 at place b.
    """
    cells = canvas.cells
    if kind == "count":
        return Question(kind, "how many digits?", str(sum(word != "-" for word in canvas.words)))
    if kind == "place":
        row, column = _choose(len(cells), generator), _choose(len(cells[0]), generator)
        return Question(kind, f"row {row + 1} column {column + 1}?", _word(cells[row][column]), PLACES[row][column])
    held = {(row, column): cell for row, line in enumerate(cells) for column, cell in enumerate(line) if cell is not None}
    possible = []
    for (row, column), digit in held.items():
        if list(held.values()).count(digit) > 1:
            continue
        found = f"{digit}{PLACES[row][column]}"
        if kind == "where":
            possible.append(Question(kind, f"where is {digit}?", found[1], found[0]))
            continue
        for relation, (down, right) in NEIGHBOURS.items():
            there = (row + down, column + right)
            if there in held:
                working = f"{found} {PLACES[there[0]][there[1]]}"
                possible.append(Question(kind, f"{relation} {digit}?", str(held[there]), working))
    return possible[_choose(len(possible), generator)] if possible else None


def _word(cell: int | None) -> str:
    return "-" if cell is None else str(cell)


def _choose(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
