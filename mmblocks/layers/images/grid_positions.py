"""What is added to patch tokens so that they know their place: fixed sines and cosines, or a learned table of any size.

Shapes: h and w of one grid, P places of all grids, D width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmblocks.block import Block


class SinCosPositions(Block):
    """Sines and cosines of the column, then of the row, with angles that fall geometrically from channel to channel.

    Args:
        dim: D, a multiple of four.
        theta: base of the angles.
        table_size: rows and columns of a table in the middle of which each grid lies; None counts from the first row and column.
        base_size: steps into which the table is stretched or shrunk; None for ``table_size``.
        interpolation: divides all steps again: above 1 the places of a table are closer together (OmniGen's ``pe_interpolation``).

    Raises:
        ValueError: a ``dim`` that is no multiple of four, a ``base_size`` without a table, or an ``interpolation`` of 0 or less.

    Source: MAE (arXiv 2111.06377); with a table of 192 and a base of 64 in OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import SinCosPositions
        >>> positions = SinCosPositions(dim=8)
        >>> vectors = positions([(2, 3), (1, 1)])  # the places of two images, one after the other
        >>> tuple(vectors.shape)
        (7, 8)
        >>> torch.equal(vectors[0], vectors[6])  # both are the first place
        True
    """

    def __init__(
        self,
        *,
        dim: int,
        theta: float = 10000.0,
        table_size: int | None = None,
        base_size: int | None = None,
        interpolation: float = 1.0,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim is {dim}; accepted: multiples of 4")
        if base_size is not None and table_size is None:
            raise ValueError(f"base_size is {base_size}, table_size None; accepted: a base for a table")
        if not interpolation > 0:
            raise ValueError(f"interpolation is {interpolation}; accepted: above 0")
        self.dim = dim
        self.theta = theta
        self.table_size = table_size
        self.step = interpolation * (1.0 if table_size is None or base_size is None else table_size / base_size)

    def forward(self, grids: Sequence[tuple[int, int]]) -> Float[Tensor, "P D"]:
        """For each place of the grids (h, w), packed, in float32 on the CPU.

        Raises:
            ValueError: a grid larger than the table.
        """
        return torch.cat([self._of_grid(*grid) for grid in grids]).float()

    def difference(self, table: Float[Tensor, "..."]) -> float:
        """The largest difference between these positions and a published table (1, P, D) of all places, row by row.

        Raises:
            ValueError: positions without a table, or a table of another shape.
        """
        size = self.table_size or 0
        if tuple(table.shape) != (1, size * size, self.dim) or not size:
            raise ValueError(f"the table has shape {tuple(table.shape)}; accepted: {(1, size * size, self.dim)}")
        line = self._of_line(size).to(table.device)
        by_column, by_row = table[0].unflatten(0, (size, size)).tensor_split(2, dim=-1)
        # A row at a time: published tables have a hundred million numbers.
        largest = [
            torch.maximum((columns.double() - line).abs().max(), (rows.double() - line[at]).abs().max())
            for at, (columns, rows) in enumerate(zip(by_column, by_row, strict=True))
        ]
        return float(torch.stack(largest).max())

    def _of_grid(self, rows: int, columns: int) -> Tensor:
        by_row, by_column = self._of_line(rows), self._of_line(columns)
        both = [by_column[None].expand(rows, -1, -1), by_row[:, None].expand(-1, columns, -1)]
        return torch.cat(both, dim=-1).flatten(0, 1)

    def _of_line(self, length: int) -> Tensor:
        """Sines, then cosines, for each place on a line; in float64, as published tables were made."""
        if self.table_size is not None and length > self.table_size:
            raise ValueError(f"a grid has {length} places on a side; accepted: at most {self.table_size}")
        first = 0 if self.table_size is None else (self.table_size - length) // 2
        places = (first + torch.arange(length, dtype=torch.float64, device="cpu")) / self.step
        exponents = torch.arange(self.dim // 4, dtype=torch.float64, device="cpu") / (self.dim // 4)
        angles = places[:, None] / self.theta**exponents
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class LearnedPositions(Block):
    """A learned table, resized (bicubic) to each grid.

    Args:
        dim: D.
        rows, columns: of the table.
        init_std: standard deviation of the initial vectors.

    Source: ViT (arXiv 2010.11929), resized with antialiasing as in timm.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import LearnedPositions
        >>> positions = LearnedPositions(dim=8, rows=4, columns=4)
        >>> vectors = positions([(4, 4), (2, 6)])
        >>> tuple(vectors.shape)  # 16 places of one image, 12 of the other
        (28, 8)
    """

    def __init__(self, *, dim: int, rows: int, columns: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, columns, dim).normal_(std=init_std))

    def forward(self, grids: Sequence[tuple[int, int]]) -> Float[Tensor, "P D"]:
        """For each place of the grids (h, w), packed."""
        resized = {grid: self._resized(*grid) for grid in grids}
        return torch.cat([resized[grid] for grid in grids])

    def _resized(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == tuple(self.table.shape[:2]):
            return self.table.flatten(0, 1)
        image = self.table.float().permute(2, 0, 1)[None]
        made = interpolate(image, size=(rows, columns), mode="bicubic", antialias=True)
        return made[0].permute(1, 2, 0).flatten(0, 1).to(self.table.dtype)
