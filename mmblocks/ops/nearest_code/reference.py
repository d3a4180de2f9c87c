"""The nearest code of each vector, in plain PyTorch and in pieces: never all distances at once.

Shapes: N vectors, K codes, D width.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

Metric = Literal["l2", "cosine", "dot"]
"""l2: the smallest Euclidean distance. cosine: the smallest angle. dot: the largest dot product, whatever the lengths."""

CHUNK_BYTES = 2**24
"""Memory for one piece of the distances."""


def nearest_code(x: Tensor, codebook: Tensor, metric: Metric = "l2") -> Tensor:
    """The number of the code that is nearest; the lowest of equals.

    Args:
        x: (N, D), of any floating dtype.
        codebook: (K, D).
        metric: what near means.

    Returns:
        (N,) int64. Scores are compared in float32, whatever the dtypes, so that half precision flips no code by rounding sums.

    Raises:
        ValueError: an unknown metric, or widths that differ.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}; accepted: {', '.join(get_args(Metric))}")
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"x is {x.shape[-1]} wide, the codes {codebook.shape[-1]}; accepted: the same width")
    x, codebook = x.detach().float(), codebook.detach().float()
    if metric == "cosine":
        x, codebook = normalize(x, dim=-1), normalize(codebook, dim=-1)
    # |x - c|^2 without |x|^2, which is the same for every code. Unit codes are nearest where the dot product is largest.
    half_norm = codebook.square().sum(dim=1) / 2 if metric == "l2" else codebook.new_zeros(len(codebook))
    rows = max(1, CHUNK_BYTES // (4 * len(codebook)))
    pieces = [torch.addmm(half_norm, piece, codebook.T, alpha=-1).argmin(dim=1) for piece in x.split(rows)]
    return torch.cat(pieces) if pieces else x.new_zeros(0, dtype=torch.long)
