"""Squares of neighbouring tokens joined along their width: fewer, wider tokens, and nothing lost.

Shapes: B images, rows and columns of tokens, D their width; f tokens a side of a square.
"""

from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block
from mmblocks.connectors.grids import Grid, check_axes

_ORDERS = {
    "v1": "b (h p) (w q) d -> b w h (p q d)",
    "v2": "b (h p) (w q) d -> b h w (p q d)",
}


class PixelShuffle(Block):
    """Joins ``factor`` x ``factor`` tokens into one of ``factor ** 2`` times their width; InternVL's has no weights.

    Args:
        factor: tokens a side of a square: 1 / ``downsample_ratio`` of InternVL's config.
        version: "v2" keeps rows and columns; "v1" hands them over the other way round, as InternVL's first checkpoints
            (``ps_version`` "v1") were trained.

    Raises:
        ValueError: a factor below one, or another version.

    Source: InternVL 1.5 (arXiv 2404.16821; OpenGVLab/InternVL), where the operation is called pixel shuffle.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import ConnectorChain, MLPProjector, PixelShuffle
        >>> connector = ConnectorChain(parts=[PixelShuffle(factor=2), MLPProjector(in_dim=4 * 16, dim=32, norm=True)])
        >>> tuple(connector(torch.randn(1, 4, 6, 16)).shape)
        (1, 2, 3, 32)
    """

    def __init__(self, *, factor: int = 2, version: Literal["v1", "v2"] = "v2") -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor is {factor}; accepted: at least 1")
        if version not in _ORDERS:
            raise ValueError(f"version is {version!r}; accepted: {', '.join(map(repr, _ORDERS))}")
        self.factor = factor
        self.version = version

    def forward(self, features: Float[Tensor, "B rows columns D"]) -> Float[Tensor, "B rows2 columns2 D2"]:
        """(B, rows, columns, D) to (B, rows / f, columns / f, f * f * D); with "v1" (B, columns / f, rows / f, f * f * D).

        Raises:
            ValueError: rows or columns that are no multiple of ``factor``.
        """
        check_axes(features, "rows", "columns")
        self.out_grid((features.shape[1], features.shape[2]))
        return rearrange(features, _ORDERS[self.version], p=self.factor, q=self.factor)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get; raises what ``forward`` raises."""
        rows, columns = grid
        if rows % self.factor or columns % self.factor:
            near = "x".join(str(max(round(side / self.factor), 1) * self.factor) for side in grid)
            raise ValueError(f"features are {rows}x{columns} tokens; accepted: multiples of {self.factor}, such as {near}")
        shape = (rows // self.factor, columns // self.factor)
        return shape if self.version == "v2" else shape[::-1]
