"""A codebook of RQ-VAE: its codes are quotients of two running averages.

Shapes: N features, K codes, D width of a code.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.ops.nearest_code import nearest_code
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import from_first, num_of_each, rows_of_all, sum_of_all
from mmblocks.tokenizers.bottlenecks.codebooks.running_averages import RunningAverages, finite_or_warned


class AveragingCodebook(RunningAverages, Block):
    """K codes that move with the average of what chose them, and a row of padding, which nothing chooses.

    The averages are float32 whatever the module is cast to; the codes, which are computed from them anew at each step, are cast.

    Args:
        num_codes: K.
        dim: D.
        decay: how much of the running averages stays at each step.
        restart_unused: whether codes that less than one feature chose recently move to features of the batch.

    Attributes:
        codes: (K + 1, D); without gradients. The last row is the padding of published files.
        sizes: (K,), the running average of how many features chose a code.
        sums: (K, D), the running average of their sum.

    Source: RQ-VAE (arXiv 2203.01941; kakaobrain/rq-vae-transformer).
    """

    averages: ClassVar[tuple[str, ...]] = ("sizes", "sums")

    sizes: Tensor
    sums: Tensor

    def __init__(self, *, num_codes: int, dim: int, decay: float = 0.99, restart_unused: bool = True) -> None:
        super().__init__()
        self.decay = decay
        self.restart_unused = restart_unused
        codes = torch.empty(num_codes + 1, dim).normal_()
        codes[-1] = 0
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("sizes", torch.zeros(num_codes))
        self.register_buffer("sums", codes[:-1].clone())

    def nearest(self, features: Float[Tensor, "*N D"]) -> Int[Tensor, "*N"]:
        """The number of the nearest code; the lowest of equals."""
        return nearest_code(features.flatten(0, -2), self.codes[:-1]).view(features.shape[:-1])

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number."""
        return embedding(ids, self.codes)

    @torch.no_grad()
    def learn(self, features: Float[Tensor, "N D"], ids: Int[Tensor, " N"], generator: Generator | None = None) -> None:
        """One step of the running averages; with several processes, over the features of all.

        No feature at all changes nothing; nor do features that are not finite, of any process, and a warning says so.

        Args:
            features: what was quantised.
            ids: what each chose.
            generator: source of randomness for the features that unused codes move to.
        """
        features = features.to(self.sums.dtype)
        counts = torch.bincount(ids, minlength=len(self.sizes)).to(self.sizes.dtype)
        added = torch.zeros_like(self.sums).index_add_(0, ids, features)
        sum_of_all(added, counts)
        learns = finite_or_warned(added) & (counts.sum() > 0)
        sizes = self.sizes.mul(self.decay).add(counts, alpha=1 - self.decay)
        sums = self.sums.mul(self.decay).add(added, alpha=1 - self.decay)
        nums = num_of_each(features) if self.restart_unused else []
        if sum(nums):
            substitutes = self._substitutes(features, nums, generator)
            unused = sizes < 1
            sums = torch.where(unused[:, None], substitutes, sums)
            sizes = sizes.masked_fill(unused, 1)
        total = sizes.sum()
        smoothed = total * (sizes + 1e-5) / (total + len(sizes) * 1e-5)
        codes = self.codes[:-1]
        for old, new in ((self.sizes, sizes), (self.sums, sums), (codes, sums / smoothed[:, None])):
            old.copy_(torch.where(learns, new, old))

    def _substitutes(self, features: Tensor, nums: list[int], generator: Generator | None) -> Tensor:
        """A feature of any process for every code, drawn without repetition; too few are repeated with a little noise."""
        (count, dim), device = self.sums.shape, features.device
        if sum(nums) >= count:
            drawn = torch.randperm(sum(nums), device=device, generator=generator)[:count]
            return rows_of_all(features, from_first(drawn), nums)
        features = rows_of_all(features, torch.arange(sum(nums), device=device), nums).repeat(-(-count // sum(nums)), 1)
        noise = torch.rand(features.shape, dtype=features.dtype, device=device, generator=generator)
        features = features + noise * (0.01 / dim**0.5)
        return from_first(features[torch.randperm(len(features), device=device, generator=generator)[:count]])
