"""Averages over squares of tokens, as in Emu2, and over however many it takes for a grid of fixed size.

Shapes: B images, rows, columns and frames of tokens, D their width.
"""

import math
from collections.abc import Callable

from einops import reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from mmblocks.block import Block
from mmblocks.connectors.grids import Grid, check_axes


class AveragePool(Block):
    """Averages over squares of tokens, of the side that gives at least ``num_tokens`` of them on a square grid.

    Rows and columns that are left over are dropped, as published; with 32 x 32 tokens, 64 and 256 leave none.

    Args:
        num_tokens: how many: 64 in Emu2 and Emu2-Gen, 256 in Emu2-Chat.

    Raises:
        ValueError: fewer than one token.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import AveragePool
        >>> connector = AveragePool(num_tokens=4)
        >>> features = torch.randn(2, 6, 6, 8)
        >>> tuple(connector(features).shape)
        (2, 2, 2, 8)
        >>> torch.allclose(connector(features)[:, 0, 0], features[:, :3, :3].mean(dim=(1, 2)), atol=1e-6)
        True
    """

    def __init__(self, *, num_tokens: int = 64) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}; accepted: at least 1")
        self.num_tokens = num_tokens

    def forward(
        self, features: Float[Tensor, "B rows columns D"], *, num_tokens: int | None = None
    ) -> Float[Tensor, "B rows2 columns2 D"]:
        """Averages.

        Args:
            features: without a class token.
            num_tokens: instead of the connector's own number; Emu2 takes 64 for each frame of a video.

        Raises:
            ValueError: fewer than one token, or more than a square of the shorter side holds.
        """
        check_axes(features, "rows", "columns")
        side = self._side((features.shape[1], features.shape[2]), num_tokens)
        rows, columns = (length // side * side for length in features.shape[1:3])
        return reduce(features[:, :rows, :columns], "b (h p) (w q) d -> b h w d", "mean", p=side, q=side)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get; raises what ``forward`` raises."""
        side = self._side(grid, None)
        return tuple(length // side for length in grid)

    def _side(self, grid: Grid, num_tokens: int | None) -> int:
        wanted, shorter = self.num_tokens if num_tokens is None else num_tokens, min(grid)
        if not 1 <= wanted <= shorter**2:
            raise ValueError(f"num_tokens is {wanted}; accepted for {'x'.join(map(str, grid))} tokens: 1 to {shorter**2}")
        return int(shorter // math.sqrt(wanted))


class AdaptivePool(Block):
    """Averages that bring any grid to one size; areas overlap where the sizes do not divide, as torch's adaptive pooling.

    Args:
        size: (rows, columns) for images, (frames, rows, columns) for videos.

    Raises:
        ValueError: another number of sides, or one below one.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import AdaptivePool
        >>> connector = AdaptivePool(size=(2, 3))
        >>> tuple(connector(torch.randn(1, 7, 9, 8)).shape)
        (1, 2, 3, 8)
    """

    def __init__(self, *, size: tuple[int, ...]) -> None:
        super().__init__()
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"size is {size}; accepted: (rows, columns) or (frames, rows, columns), each at least 1")
        self.size = tuple(size)

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid2 D"]:
        """(B, rows, columns, D), or (B, frames, rows, columns, D), to ``size``.

        Raises:
            ValueError: features on a grid of other axes.
        """
        if len(self.size) == 2:
            check_axes(features, "rows", "columns")
            pool: Callable[..., Tensor] = adaptive_avg_pool2d
        else:
            check_axes(features, "frames", "rows", "columns")
            pool = adaptive_avg_pool3d
        return pool(features.movedim(-1, 1), self.size).movedim(1, -1)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get: ``size``."""
        return self.size
