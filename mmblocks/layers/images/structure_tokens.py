"""Tokens that tell a trunk the shape of an image, as parts of its layout: how many rows and columns it has, where a row ends.

Shapes: n tokens of an image before, N with structure.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.tokens import ImageLayout, TokenKind

ROW_END, NUM_ROWS, NUM_COLUMNS = -1, -2, -3
"""What a token is that is none of the image's own."""


class Structured(NamedTuple):
    """An image's layout with structure.

    Attributes:
        layout: of all tokens.
        source: for each the index of the image's own token that it is; or ``ROW_END``, ``NUM_ROWS``, ``NUM_COLUMNS``.
        rows: of the image's patches.
        columns: likewise.
    """

    layout: ImageLayout
    source: Int[Tensor, " N"]
    rows: int
    columns: int


def with_structure(layout: ImageLayout, *, row_ends: bool = True, size_prefix: bool = False) -> Structured:
    """Puts structure tokens into a layout.

    Args:
        layout: of the image's own tokens: patches row by row, and perhaps class tokens before them.
        row_ends: a newline token after each row of each frame.
        size_prefix: two size tokens in front of everything, the number of rows and that of columns.

    Raises:
        ValueError: newline or size tokens that are there already, or a layout without patches.
    """
    kinds = set(layout.kind.tolist())
    asked = {int(TokenKind.NEWLINE)} if row_ends else set()
    asked |= {int(TokenKind.SIZE)} if size_prefix else set()
    if int(TokenKind.PATCH) not in kinds or asked & kinds:
        raise ValueError(f"layout has tokens of the kinds {sorted(kinds)}; accepted: patches, and no structure that is asked for")
    is_patch = layout.kind == int(TokenKind.PATCH)
    rows, columns = (int(side) + 1 for side in layout.grid[is_patch][:, 1:].amax(dim=0))

    source = torch.arange(len(layout.kind))
    if row_ends:
        line = layout.grid[:, :2]
        ends = is_patch & torch.cat([(line[1:] != line[:-1]).any(dim=1), torch.ones(1, dtype=torch.bool)])
        place = source + torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1].long().cumsum(0)])
        source = torch.full((len(source) + int(ends.sum()),), ROW_END).index_put((place,), source)
    if size_prefix:
        source = torch.cat([torch.tensor([NUM_ROWS, NUM_COLUMNS]), source])

    # A row's end stands after the row's last token; what comes first stands at the beginning.
    before = torch.where(source == ROW_END, source.roll(1), source).clamp(min=0)
    grid = layout.grid[before]
    grid[source == ROW_END, 2] = columns
    grid[source < ROW_END] = 0
    kind = torch.where(source == ROW_END, int(TokenKind.NEWLINE), layout.kind[before])
    return Structured(ImageLayout(grid, torch.where(source < ROW_END, int(TokenKind.SIZE), kind)), source, rows, columns)
