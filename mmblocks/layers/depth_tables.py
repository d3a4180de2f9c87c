"""A table of vectors for each level of codes, as one tensor.

Shapes: N tokens, Q levels, D width.
"""

from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from mmblocks.support.checks import as_int64, is_readable


class DepthTables(nn.Module):
    """Looks codes of Q levels up, each in its own table. -1, where a level has no code, has a vector of its own.

    Args:
        sizes: K of each level.
        dim: D.
        init_std: of the initial vectors.

    Raises:
        ValueError: no level, or an empty one; ``dim`` below 1.
    """

    def __init__(self, sizes: tuple[int, ...], dim: int, init_std: float) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {tuple(sizes)}; accepted: the size of at least one codebook, 1 or more each")
        if dim < 1:
            raise ValueError(f"dim is {dim}; accepted: 1 or more")
        self.sizes = tuple(sizes)
        self.weight = nn.Parameter(torch.empty(sum(sizes) + len(sizes), dim))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, codes: Int[Tensor, "N Q"]) -> Float[Tensor, "N Q D"]:
        """The vectors of the first Q levels, or of all.

        Raises:
            TypeError: codes that are no integers.
            ValueError: another shape, or a code out of range (checked on CPU).
        """
        codes = check_codes("codes", codes, self.sizes)
        # The vector of -1 comes first in each table.
        begins = torch.tensor([0, *accumulate(size + 1 for size in self.sizes[:-1])], device=codes.device)
        return embedding(codes + 1 + begins, self.weight)

    def level(self, codes: Int[Tensor, " N"], number: int) -> Float[Tensor, "N D"]:
        """The vectors of one level's codes, which are not checked."""
        return embedding(codes + 1 + sum(self.sizes[:number]) + number, self.weight)


def check_codes(name: str, codes: Tensor, sizes: tuple[int, ...]) -> Int[Tensor, "N Q"]:
    """Codes as int64; -1 stands for none.

    Raises:
        TypeError: codes that are no integers.
        ValueError: another shape, or a code out of range (checked on CPU).
    """
    codes = as_int64(name, codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise ValueError(f"{name} has shape {tuple(codes.shape)}; accepted: (N, {len(sizes)}), one code a level")
    if is_readable(codes):
        wrong = (codes < -1) | (codes >= torch.tensor(sizes))
        if bool(wrong.any()):
            raise ValueError(f"{name} holds {codes[wrong][0].item()}; accepted: from 0 to below {sizes}, level by level, or -1")
    return codes
