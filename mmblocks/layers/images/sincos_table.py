"""Fixed sines and cosines of places, kept as a table, as checkpoints have it that store theirs.

Shapes: N tokens, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.support.checks import check_range


class SinCosTable(Block):
    """What ``SinCosPositions`` says of each place of a square, as a buffer: it has the checkpoint's own rounding, and no gradient.

    Args:
        dim: D, a multiple of four.
        side: rows and columns.

    Raises:
        ValueError: a ``dim`` that is no multiple of four, or a side below 1.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel), which counts rows and columns from the first.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import SinCosTable
        >>> table = SinCosTable(dim=8, side=4)
        >>> tuple(table.at(torch.tensor([[0, 0, 0], [0, 1, 3]])).shape)  # (t, h, w)
        (2, 8)
    """

    table: Tensor

    def __init__(self, *, dim: int, side: int) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"side is {side}; accepted: 1 or more")
        self.side = side
        self.register_buffer("table", SinCosPositions(dim=dim)([(side, side)]).to(torch.empty(0)))

    def at(self, grid: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """The vectors of places (t, h, w); t is not looked at.

        Raises:
            ValueError: a place outside of the table (checked on CPU).
        """
        _, rows, columns = grid.unbind(-1)
        for name, numbers in (("row", rows), ("column", columns)):
            check_range(name, numbers, self.side)
        return self.table[rows * self.side + columns]
