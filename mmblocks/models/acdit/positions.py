"""ACDiT's order of tokens and its rotary positions.

Shapes: F frames, R rows, C columns of tokens; L = F x R x C tokens, B rows of a batch, H heads, E width of a head.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.sequence.positions import RotaryTable
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.rotary import Rotary


def block_order(grid: tuple[int, int, int], block_size: int, square: bool) -> Int[Tensor, " L"]:
    """Number, row by row, of the token at each place of the sequence of blocks.

    Args:
        grid: (F, R, C).
        block_size: tokens in a block.
        square: whether blocks are squares of one frame, rather than runs of rows or frames.

    Raises:
        ValueError: blocks that do not divide the grid.
    """
    frames, rows, columns = grid
    index = torch.arange(frames * rows * columns, device="cpu")
    if index.numel() % block_size:
        raise ValueError(f"block_size is {block_size}; accepted: divisors of {index.numel()}, the tokens of {grid}")
    if not square:
        return index
    side = math.isqrt(block_size)
    if side * side != block_size or rows % side or columns % side:
        raise ValueError(f"block_size is {block_size}; accepted for square blocks: squares that divide {rows}x{columns}")
    squares = rearrange(index, "(f r a c b) -> (f r c) (a b)", f=frames, r=rows // side, a=side, b=side)
    return squares.flatten()


def head_split(head_dim: int, shares: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of a head for each axis, even numbers in the ratio of ``shares``.

    Raises:
        ValueError: a head that cannot be divided so.
    """
    unit = head_dim // 2 // sum(shares)
    if 2 * unit * sum(shares) != head_dim:
        raise ValueError(f"head_dim is {head_dim}, axis_shares {shares}; accepted: multiples of {2 * sum(shares)}")
    return tuple(2 * unit * share for share in shares)


class BlockRotary(Rotary):
    """Rotary embedding by the places of tokens in their grid.

    Each axis has its own channels, frequencies and base, which follows from its length. The frequencies run down to the inverse
    base itself, and the axes' channels stand side by side, while channel i is turned with channel i + E/2: no rotation in the
    strict sense, but what the published weights were trained with.

    Args:
        lengths: of the axes that have a position, the last ones of (frames, rows, columns).
        widths: channels of a head for each of them.

    Source: thunlp/ACDiT, whose base lets the slowest angle reach about pi over eight times the length.
    """

    lengths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def check_head(self, head_dim: int) -> None:
        """Refuses heads of another width."""
        if sum(self.widths) != head_dim or len(self.lengths) != len(self.widths):
            raise ValueError(f"lengths is {self.lengths}, widths {self.widths}; accepted: one for each axis, {head_dim} in all")

    def turned(self, head_dim: int) -> int:
        """All channels."""
        return head_dim

    def table(self, context: ForwardContext, head_dim: int) -> RotaryTable:
        """The angles of the new tokens, for every channel."""
        return self.angles_at(context.table.grid)

    def angles_at(self, grid: Int[Tensor, "*L 3"]) -> RotaryTable:
        """The angles of tokens at these (frame, row, column)."""
        parts = []
        for axis, (length, width) in enumerate(zip(self.lengths, self.widths, strict=True), start=3 - len(self.lengths)):
            base = (int(8 * length / math.pi) // 100 + 1) * 100
            exponents = torch.linspace(0, sum(self.widths), width // 2, device=grid.device) / sum(self.widths)
            angle = grid[..., axis, None].float() * (1.0 / base**exponents)
            parts += [angle, angle]
        joined = torch.cat(parts, dim=-1)
        return RotaryTable(joined.cos(), joined.sin())

    def rotate(self, x: Float[Tensor, "B H L E"], angles: RotaryTable) -> Float[Tensor, "B H L E"]:
        """Turned heads, in float32."""
        first, second = x.float().chunk(2, dim=-1)
        crossed = torch.cat([-second, first], dim=-1)
        return (x.float() * angles.cos[:, None] + crossed * angles.sin[:, None]).to(x.dtype)
