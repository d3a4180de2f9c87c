"""An EVE-like model on real digits: no image encoder, pixels go straight into the trunk that also reads and writes text.

It looks at canvases of 1x1 to 3x3 cells, each a handwritten digit or a gap, and writes down what it sees, such as
"1 - 7 / 3 9 -". With --full it goes on to answer questions about canvases.

    python examples/eve_like.py [--out demo] [--full]
"""

from typing import NamedTuple

import torch
from torch import Tensor

from digits import Digits, augment
from mmblocks import (
    GREEDY,
    ByteTokenizer,
    Decoder,
    EVE2PatchEmbedding,
    LMHead,
    MultimodalModel,
    TextEmbedding,
    TextGrammar,
    image,
    text,
)  # fmt: skip

TEXT = ByteTokenizer(specials=("<answer>", "<end>"))
CELL = 28
SIZES = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
GAPS = 0.25


class Canvas(NamedTuple):
    """An image of several digits, and what each cell holds: a digit, or None for a gap."""

    pixels: Tensor
    cells: list[list[int | None]]

    def transcript(self) -> str:
        return " / ".join(" ".join("-" if cell is None else str(cell) for cell in row) for row in self.cells)


def make_canvases(digits: Digits, count: int, generator: torch.Generator, *, augmented: bool) -> list[Canvas]:
    """Canvases of all sizes in turn, of digits drawn at random."""
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    num_cells = sum(rows * columns for rows, columns in sizes)
    chosen = torch.randint(len(digits.labels), (num_cells,), generator=generator)
    is_gap = torch.rand(num_cells, generator=generator) < GAPS
    pixels = digits.pixels[chosen]
    pixels = augment(pixels, generator) if augmented else pixels
    pixels = pixels * ~is_gap[:, None, None, None]
    labels = [None if gap else int(label) for gap, label in zip(is_gap, digits.labels[chosen], strict=True)]
    canvases, at = [], 0
    for rows, columns in sizes:
        cells = pixels[at : at + rows * columns].unflatten(0, (rows, columns))
        whole = cells.permute(2, 0, 3, 1, 4).reshape(3, rows * CELL, columns * CELL)
        canvases.append(Canvas(whole, [labels[at + r * columns : at + (r + 1) * columns] for r in range(rows)]))
        at += rows * columns
    return canvases


def build_model(dim: int = 128, patch: int = 14, hidden: int = 256, layers: int = 4) -> MultimodalModel:
    return MultimodalModel(
        inputs={
            "text": TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "vision": EVE2PatchEmbedding(dim=dim, hidden_dim=hidden, patch_size=patch, merge_size=2),
        },
        trunk=Decoder(dim=dim, num_layers=layers, num_heads=4, mlp_dim=dim * 8 // 3 // 8 * 8, qk_norm=True),
        outputs={"text": LMHead(dim=dim, vocab_size=TEXT.vocab_size)},
    )


def seen(canvas: Canvas) -> list:
    """What the model is shown."""
    return [image(canvas.pixels), text([TEXT["<answer>"]])]


def told(canvas: Canvas) -> list:
    """What it learns to write."""
    return [*seen(canvas), text([*canvas.transcript().encode(), TEXT["<end>"]], target="text")]


def read(model: MultimodalModel, canvases: list[Canvas]) -> list[str]:
    """What the model writes for each canvas."""
    written = [""] * len(canvases)
    grammar = TextGrammar(TEXT.vocab_size, stop=(TEXT["<end>"],))
    for generated in model.generate([seen(c) for c in canvases], grammar, max_tokens=24, sampling=GREEDY, tokenizer=TEXT):
        written[generated.row] = generated.segment.content
    return written
