"""ACDiT's order of tokens and its rotary positions.

Shapes: F frames, R rows, C columns of tokens; L = F x R x C tokens; D width of a head.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class Angles(NamedTuple):
    """Cosines and sines for every channel of a head, in float32."""

    cos: Float[Tensor, "L D"]
    sin: Float[Tensor, "L D"]


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


def angles(positions: Int[Tensor, "L axes"], lengths: tuple[int, ...], widths: tuple[int, ...]) -> Angles:
    """Angles per channel: each axis has its own channels, frequencies and base, which follows from its length.

    The frequencies run down to the inverse base itself, and the axes' channels stand side by side, while ``turn`` pairs channel
    i with channel i + D/2: no rotation in the strict sense, but what the published weights were trained with.

    Source: thunlp/ACDiT, whose base lets the slowest angle reach about pi over eight times the length.
    """
    head_dim = sum(widths)
    parts = []
    for axis, (length, width) in enumerate(zip(lengths, widths, strict=True)):
        base = (int(8 * length / math.pi) // 100 + 1) * 100
        exponents = torch.linspace(0, head_dim, width // 2, device=positions.device) / head_dim
        angle = positions[:, axis, None].float() * (1.0 / base**exponents)
        parts += [angle, angle]
    joined = torch.cat(parts, dim=-1)
    return Angles(joined.cos(), joined.sin())


def turn(x: Float[Tensor, "N H L D"], table: Angles) -> Float[Tensor, "N H L D"]:
    """Turns queries or keys, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    return (x.float() * table.cos + crossed * table.sin).to(x.dtype)
