"""The blocks that ACDiT makes one after the other: which tokens they hold, and where these stand.

Shapes: N rows, T blocks, S tokens of a block, C width of a token's latents, L tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.models.acdit.positions import block_order


class BlockGrid(nn.Module):
    """A grid of tokens as a sequence of blocks.

    Args:
        grid: (frames, rows, columns) of tokens.
        size: S; must divide the tokens of the grid.
        square: whether blocks are squares, rather than runs of rows or of frames.

    Attributes:
        count: T.

    Raises:
        ValueError: blocks that do not divide the grid.
    """

    order: Tensor

    def __init__(self, grid: Sequence[int], size: int, square: bool) -> None:
        super().__init__()
        self.grid, self.size, self.square = (grid[0], grid[1], grid[2]), size, square
        self.reset_buffers(torch.get_default_device())
        self.count = len(self.order) // size

    def reset_buffers(self, device: torch.device) -> None:
        """The order of the tokens, which follows from the arguments."""
        self.register_buffer("order", block_order(self.grid, self.size, self.square).to(device), persistent=False)

    def split(self, latents: Float[Tensor, "N *grid C"]) -> Float[Tensor, "N T S C"]:
        """A map of tokens, (N, rows, columns, C) or with frames (N, frames, rows, columns, C), as blocks.

        Raises:
            ValueError: a map of another size.
        """
        accepted: tuple[tuple[int, ...], ...] = (self.grid, *([self.grid[1:]] if self.grid[0] == 1 else []))
        if tuple(latents.shape[1:-1]) not in accepted:
            found = f"the map has {tuple(latents.shape[1:-1])} tokens"
            raise ValueError(f"{found}; accepted: {' or '.join(map(str, accepted))}")
        return latents.flatten(1, -2)[:, self.order].unflatten(1, (self.count, self.size))

    def join(self, blocks: Float[Tensor, "N T S C"]) -> Float[Tensor, "N *grid C"]:
        """Blocks as a map of tokens, without frames where there is one only."""
        tokens = blocks.flatten(1, 2)[:, self.order.argsort()]
        return tokens.unflatten(1, self.grid[1:] if self.grid[0] == 1 else self.grid)

    def positions(self) -> Int[Tensor, "L 3"]:
        """(frame, row, column) of the tokens of all blocks."""
        _, rows, columns = self.grid
        return torch.stack([self.order // (rows * columns), self.order // columns % rows, self.order % columns], dim=-1)
