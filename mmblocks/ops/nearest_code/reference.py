"""The nearest code of each vector, in plain PyTorch and in tiles: never all distances at once.

Shapes: N vectors, K codes, D width; a tile is R vectors by C codes, in groups of G codes.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

Metric = Literal["l2", "cosine", "dot"]
"""l2: the smallest Euclidean distance. cosine: the smallest angle. dot: the largest dot product, whatever the lengths."""

CPU_TILE = (512, 16384)
"""Vectors and codes of a tile: 32 MiB of distances. The codes are a multiple of ``GROUP``. Smaller tiles suit the caches of one
thread a little better, but have many threads wait for each other many times, for long where other programs run too."""

LARGE_TILE = (8192, 8192)
"""On other devices, where each tile takes several launches."""

GROUP = 128
"""Codes whose smallest distance is found before it is asked which of them has it: the minimum takes a CPU a twentieth of the
time that its place takes."""


def nearest_code(x: Tensor, codebook: Tensor, metric: Metric = "l2") -> Tensor:
    """The number of the code that is nearest; the lowest of equals.

    Args:
        x: (N, D), of any floating dtype.
        codebook: (K, D).
        metric: what near means.

    Returns:
        (N,) int64. Scores are compared in float32, whatever the dtypes and autocast, so that half precision flips no code by
        rounding sums.

    Raises:
        ValueError: an unknown metric, widths that differ, or no code at all.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}; accepted: {', '.join(get_args(Metric))}")
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"x is {x.shape[-1]} wide, the codes {codebook.shape[-1]}; accepted: the same width")
    if not len(codebook):
        raise ValueError("the codebook is empty; accepted: at least one code")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x, codebook = x.float(), codebook.float()
        if metric == "cosine":
            x, codebook = normalize(x, dim=-1), normalize(codebook, dim=-1)
        rows, columns = CPU_TILE if x.device.type == "cpu" else LARGE_TILE
        # |x - c|^2 without |x|^2, which is the same for every code. Unit codes are nearest where the dot product is largest.
        half_norm = codebook.new_zeros(len(codebook))
        if metric == "l2":
            half_norm = torch.cat([codes.square().sum(dim=1) / 2 for codes in codebook.split(columns)])
        pieces = [_nearest(piece, codebook, half_norm, columns) for piece in x.split(rows)]
        return torch.cat(pieces) if pieces else x.new_zeros(0, dtype=torch.long)


def _nearest(x: Tensor, codebook: Tensor, half_norm: Tensor, columns: int) -> Tensor:
    """The nearest codes of R vectors, tile by tile."""
    best, ids = x.new_full((len(x),), torch.inf), x.new_zeros(len(x), dtype=torch.long)
    for start, stop in _tiles(len(codebook), columns):
        scores = torch.addmm(half_norm[start:stop], x, codebook[start:stop].T, alpha=-1)
        score, place = _smallest(scores)
        nearer = score < best  # strictly: of equals the first tile's stays
        best, ids = torch.where(nearer, score, best), torch.where(nearer, place + start, ids)
    return ids


def _tiles(num_codes: int, columns: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each tile's codes: whole groups as far as possible, and the rest, fewer than a group, by itself."""
    whole = num_codes - num_codes % GROUP
    for start in range(0, whole, columns):
        yield start, min(start + columns, whole)
    if whole < num_codes:
        yield whole, num_codes


def _smallest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest entry of each row (R, C) and its place, the first of equals."""
    if scores.shape[1] % GROUP:
        return scores.min(dim=1)
    groups = scores.unflatten(1, (-1, GROUP))
    smallest, group = groups.amin(dim=2).min(dim=1)
    inside = groups[torch.arange(len(scores), device=scores.device), group].argmin(dim=1)
    return smallest, group * GROUP + inside
