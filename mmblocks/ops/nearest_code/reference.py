"""The nearest code of each vector, in plain PyTorch and in pieces: never all distances at once.

Shapes: N vectors, K codes, D width.
"""

import torch
from torch import Tensor

CHUNK_BYTES = 2**25
"""Memory for one piece of the distances."""


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """The number of the code at the smallest Euclidean distance; the lowest of equals.

    Args:
        x: (N, D), of any floating dtype.
        codebook: (K, D).

    Returns:
        (N,) int64. Distances are compared in float32, whatever the dtypes, so that half precision flips no code by
        rounding sums.
    """
    x, codebook = x.detach().float(), codebook.detach().float()
    # |x - c|^2 without |x|^2, which is the same for every code.
    half_norm = codebook.square().sum(dim=1) / 2
    rows = max(1, CHUNK_BYTES // (4 * len(codebook)))
    pieces = [torch.addmm(half_norm, piece, codebook.T, alpha=-1).argmin(dim=1) for piece in x.split(rows)]
    return torch.cat(pieces) if pieces else x.new_zeros(0, dtype=torch.long)
