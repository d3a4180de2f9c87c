"""The nearest code of each vector, in plain PyTorch and in tiles: never all distances at once.

Shapes: N vectors, K codes, D width; a tile is R vectors by C codes, in groups of G codes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmblocks.support.checks import is_readable

CPU_TILE = (512, 16384)
"""Vectors and codes of a tile: 32 MiB of distances. The codes are a multiple of ``GROUP``. Smaller tiles suit the caches of one
thread a little better, but have many threads wait for each other many times, for long where other programs run too."""

LARGE_TILE = (8192, 8192)
"""On other devices, where each tile takes several launches."""

GROUP = 128
"""Codes whose smallest distance is found before it is asked which of them has it: the minimum takes a CPU a twentieth of the
time that its place takes."""


def nearest_code_reference(x: Tensor, codebook: Tensor, half_norm: Tensor) -> Tensor:
    """(N,) ids of the codes with the smallest ``half_norm - <x, code>``; the lowest of equals.

    Args:
        x: (N, D) float32.
        codebook: (K, D) float32.
        half_norm: (K,) float32.

    Raises:
        ValueError: NaN or infinity among what decides; only on a CPU, outside compiled graphs, where looking costs nothing.
    """
    rows, columns = CPU_TILE if x.device.type == "cpu" else LARGE_TILE
    pieces = [_nearest(piece, codebook, half_norm, columns) for piece in x.split(rows)]
    return torch.cat(pieces) if pieces else x.new_zeros(0, dtype=torch.long)


def _nearest(x: Tensor, codebook: Tensor, half_norm: Tensor, columns: int) -> Tensor:
    """The nearest codes of R vectors, tile by tile."""
    best, ids = x.new_full((len(x),), torch.inf), x.new_zeros(len(x), dtype=torch.long)
    looks = is_readable(x)
    for start, stop in _tiles(len(codebook), columns):
        scores = torch.addmm(half_norm[start:stop], x, codebook[start:stop].T, alpha=-1)
        score, place = _smallest(scores)
        # The score of a NaN is one too, and so is the smallest of them: no pass over the codes is needed.
        if looks and not bool((score > -torch.inf).all()):
            raise ValueError(_why_no_score(x, codebook))
        nearer = score < best  # strictly: of equals the first tile's stays
        best, ids = torch.where(nearer, score, best), torch.where(nearer, place + start, ids)
    return ids


def _why_no_score(x: Tensor, codebook: Tensor) -> str:
    not_finite = (~codebook.isfinite().all(dim=1)).nonzero().flatten()
    if len(not_finite):
        found = f"{len(not_finite)} of {len(codebook)} codes, such as number {int(not_finite[0])}"
        return f"the codebook holds NaN or infinity in {found}; accepted: finite values"
    if not x.isfinite().all():
        return "x holds NaN or infinity; accepted: finite values"
    return "x and the codebook are so large that float32 does not hold their products; accepted: smaller values"


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
