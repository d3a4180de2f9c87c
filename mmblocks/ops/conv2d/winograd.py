"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): 36 products for 16 pixels and a pair of channels, not 144.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308). Interpolation at 0, 1, -1, 2, -2.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

STRIP_BYTES = 16 * 2**20
"""Of a strip's transformed values: strips stay in the cache."""

_PIXELS = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_WEIGHTS = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
"""In 24ths."""
_RESULTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_ways(matrix: list[list[int]], share: int = 1) -> Tensor:
    """One matrix that acts along both sides of a tile."""
    values = torch.tensor(matrix, dtype=torch.float64, device="cpu") / share
    return torch.kron(values, values).float()


_TILE, _KERNEL, _PATCH = _both_ways(_PIXELS), _both_ways(_WEIGHTS, share=24), _both_ways(_RESULTS)


@torch.no_grad()
def conv3x3_winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 1 that keeps the sides, in float32 inside; it has no gradient.

    Args:
        x: (B, C, H, W), of any floating dtype up to float32.
        weight: (C2, C, 3, 3).
        bias: (C2,).

    Returns:
        (B, C2, H, W) in channels-last memory, of x's dtype.
    """
    batch, _, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + 4 * columns - width, 1, 1 + 4 * rows - height))
    strips = _Strips(weight, bias, rows, columns)
    out = x.new_empty(batch, 4 * rows, 4 * columns, weight.shape[0])
    for source, target in zip(padded, out, strict=True):
        for first in range(0, rows, strips.rows):
            after = min(first + strips.rows, rows)
            strips(source[4 * first : 4 * after + 2], target[4 * first : 4 * after])
    return out[:, :height, :width].permute(0, 3, 1, 2)


class _Strips:
    """Convolves some rows of tiles at a time, in memory that is taken once: fresh pages cost as much as the products.

    Args:
        weight, bias: of the convolution.
        rows, columns: tiles of the map.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, columns: int) -> None:
        wide, channels = weight.shape[:2]
        by_pixel = weight.permute(0, 2, 3, 1).reshape(wide, 9, channels).float()
        self.kernels = _along(_KERNEL, by_pixel).permute(1, 2, 0)
        self.bias = None if bias is None else bias.float()
        self.rows = min(rows, max(1, STRIP_BYTES // (36 * 4 * columns * max(wide, channels))))
        tiles = self.rows * columns
        sizes = (36 * channels, 36 * channels, 36 * wide, 16 * wide)
        self.pixels, self.tiles, self.products, self.results = (torch.empty(tiles, size, device="cpu") for size in sizes)

    def __call__(self, source: Tensor, target: Tensor) -> None:
        """``source`` (4 r + 2, 4 columns + 2, C) to ``target`` (4 r, 4 columns, C2)."""
        rows, columns = target.shape[0] // 4, target.shape[1] // 4
        tiles = rows * columns
        pixels, transformed, products, results = (
            buffer[:tiles].unflatten(1, (size, -1))
            for buffer, size in ((self.pixels, 36), (self.tiles, 36), (self.products, 36), (self.results, 16))
        )
        pixels.view(rows, columns, 6, 6, -1).copy_(_overlapping(source, rows, columns))
        _along(_TILE, pixels, out=transformed)
        torch.bmm(transformed.transpose(0, 1), self.kernels, out=products.transpose(0, 1))
        _along(_PATCH, products, out=results)
        if self.bias is not None:
            results.add_(self.bias)
        target.view(rows, 4, columns, 4, -1).copy_(results.view(rows, columns, 4, 4, -1).transpose(1, 2))


def _along(matrix: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """The matrix applied to each of many small ones (N, *, C), which is faster than one product with a wide one."""
    return torch.bmm(matrix.expand(len(values), -1, -1), values, out=out)


def _overlapping(source: Tensor, rows: int, columns: int) -> Tensor:
    """A view of tiles of 6 x 6 pixels, one every 4 pixels: (rows, columns, 6, 6, C)."""
    down, right, _ = source.stride()
    size = (rows, columns, 6, 6, source.shape[2])
    return source.as_strided(size, (4 * down, 4 * right, down, right, 1), source.storage_offset())
