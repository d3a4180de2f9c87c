"""Codes of Q levels as one token a place, which holds all levels: for a head that writes them together, or one after the other.

Shapes: P places, N tokens, Q levels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.vocabulary.grid_sizes import AXES, grid_size, places_of

NO_CODE = -1
"""In place of a code: the level has none in this token."""


class DepthCodes(NamedTuple):
    """A grid written as tokens of Q codes each.

    Attributes:
        ids: the codes of each token, ``NO_CODE`` where a level has none.
        place: (t, h, w) of each token: of its code of a level without delay, and the last place where these have ended.
    """

    ids: Int[Tensor, "N Q"]
    place: Int[Tensor, "N 3"]


@dataclass(frozen=True, kw_only=True)
class DepthCodeFormat:
    """Tokens of Q codes, written by a ``DepthCodeHead`` and read by a ``DepthCodeEmbedding``.

    Nothing but codes is written: what opens and closes an image is text around it.

    Attributes:
        sizes: K of each of at least two levels: a residual tokenizer's ``codebook_sizes``.
        delays: by how many tokens each level is written later than its place: (0, 1, 2, 3) of MusicGen, (0, 1, 1, ...) of Moshi.
            None for no delay, as in RQ-Transformer: N is P.
        axes: of a grid: 1 (N,), 2 (H, W) or 3 (T, H, W).

    Raises:
        ValueError: fewer levels, an empty codebook, other axes, or delays that are not one a level, from 0 on.

    Source: RQ-Transformer (arXiv 2203.01941), MusicGen (arXiv 2306.05284), Moshi (arXiv 2410.00037).

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import DepthCodeFormat
        >>> form = DepthCodeFormat(sizes=(8, 8, 8), delays=(0, 1, 2), axes=1)
        >>> written = form.write(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> written.ids.tolist()
        [[1, -1, -1], [4, 2, -1], [-1, 5, 3], [-1, -1, 6]]
        >>> form.read(written.ids, 2).tolist()
        [[1, 2, 3], [4, 5, 6]]
    """

    sizes: tuple[int, ...]
    delays: tuple[int, ...] | None = None
    axes: int = 2

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes is {self.sizes}; accepted: the sizes of two codebooks or more, 1 or more each")
        if self.axes not in AXES:
            raise ValueError(f"axes is {self.axes}; accepted: 1, 2 or 3")
        if self.delays is not None and (len(self.delays) != len(self.sizes) or min(self.delays) != 0):
            raise ValueError(f"delays is {self.delays}; accepted: {len(self.sizes)} of 0 or more, 0 among them, or None")

    @property
    def num_levels(self) -> int:
        """Q."""
        return len(self.sizes)

    def length(self, *size: int) -> int:
        """N of a grid of this size."""
        return len(places_of(size)) + max(self.delays or (0,))

    def present(self, *size: int) -> Bool[Tensor, "N Q"]:
        """Which levels each token has: all, or with delays those that have begun and not ended."""
        at = torch.arange(self.length(*size))[:, None] - torch.tensor(self.delays or (0,) * self.num_levels)
        return (at >= 0) & (at < len(places_of(size)))

    def write(self, codes: Int[Tensor, "*size Q"]) -> DepthCodes:
        """A grid of codes as tokens.

        Raises:
            TypeError: codes that are no integers.
            ValueError: another shape, an empty grid, or a code out of range.
        """
        size = grid_size(codes, self.axes, self.sizes)
        flat = self._checked(codes.reshape(-1, self.num_levels).cpu())
        present, places = self.present(*size), places_of(size)
        ids = torch.full(present.shape, NO_CODE)
        ids.T[present.T] = flat.T.flatten()  # level by level, each in the order of its places
        return DepthCodes(ids, places[torch.arange(len(ids)).clamp(max=len(places) - 1)])

    def read(self, ids: Int[Tensor, "N Q"], *size: int) -> Int[Tensor, "*size Q"]:
        """The grid of this size that was written so. What stands where a level has no code is not looked at.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another number of tokens, levels or axes, or a code out of range.
        """
        wanted = (self.length(*size), self.num_levels)
        if tuple(ids.shape) != wanted or len(size) != self.axes:
            raise ValueError(f"ids have shape {tuple(ids.shape)} for a grid of {size}; accepted: {wanted}, and {self.axes} axes")
        codes = ids.T[self.present(*size).to(ids.device).T].view(self.num_levels, -1).T
        return self._checked(codes).reshape(*size, self.num_levels)

    def _checked(self, codes: Tensor) -> Tensor:
        """(P, Q) as int64."""
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise TypeError(f"codes are {codes.dtype}; accepted: integers")
        wrong = (codes < 0) | (codes >= torch.tensor(self.sizes, device=codes.device))
        if bool(wrong.any()):
            raise ValueError(f"codes hold {codes[wrong][0].item()}; accepted: from 0 to below {self.sizes}, level by level")
        return codes.long()
