"""Files of weights that hold low-rank adapters beside the weights that they change, as peft writes a whole model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.rules import Arguments, Rule, Side, Source


@dataclass(frozen=True)
class MergedLoRA(Rule):
    """A weight and the two matrices of its adapter, which become one weight: ``W + alpha / rank * widen @ narrow``.

    On the way back the weight is as it is, and the adapter adds nothing: what was added cannot be told from it any more.

    Attributes:
        narrow, widen: published names of the adapter's matrices, (rank, in) and (out, rank).
        rank, alpha: which no file says.
    """

    narrow: str = ""
    widen: str = ""
    rank: int = 16
    alpha: float = 16.0

    def names(self, side: Side) -> tuple[str, ...]:
        """The patterns of one side."""
        return (self.theirs, self.narrow, self.widen) if side == "theirs" else (self.ours,)

    def source(self, keys: tuple[str, ...], to: Side, part: int, arguments: Arguments) -> Source:
        """The merged weight; or the weight and an adapter of zeros."""
        if to == "ours":
            return Source(keys, lambda tensors: self._merged(*tensors))
        back = (lambda w: w, lambda w: _zeros(w, self.rank, w.shape[1]), lambda w: _zeros(w, w.shape[0], self.rank))[part]
        return Source(keys, lambda tensors: back(tensors[0]))

    def _merged(self, weight: Tensor, narrow: Tensor, widen: Tensor) -> Tensor:
        """As peft merges: in the weight's dtype."""
        out_dim, in_dim = weight.shape
        found, accepted = (tuple(narrow.shape), tuple(widen.shape)), ((self.rank, in_dim), (out_dim, self.rank))
        if found != accepted:
            raise ValueError(f"an adapter has shapes {found[0]} and {found[1]}; accepted: {accepted[0]} and {accepted[1]}")
        added = self.alpha / self.rank * (widen.float() @ narrow.float())
        return (weight.float() + added).to(weight.dtype)


def _zeros(weight: Tensor, *shape: int) -> Tensor:
    return weight.new_zeros(shape, dtype=torch.float32)  # in which the published ones are
