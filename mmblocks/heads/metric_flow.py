"""The head of metric-path discrete flow matching, as URSA has it.

Shapes: N rows, D width, B images, K codes.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.heads.language import LMHead
from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath
from mmblocks.layers.losses.row_losses import check_shape


class MetricFlowHead(LMHead):
    """Cross entropy on clean codes, given codes that were moved along a metric path; images are found by jumps.

    The trunk is told no time. URSA predicts each code one place before it, and leaves guidance off from time 0.9 on.

    Args:
        dim: D.
        path: a ``MetricPath``, which holds the codes.
        sampler: ``KineticSampler()`` if None.
        init_std: of the initial weights.

    Source: URSA (arXiv 2510.24717; baaivision/URSA).
    """

    path: Any
    sampler: Any

    def __init__(self, *, dim: int, path: Block, sampler: Block | None = None, init_std: float = 0.02) -> None:
        codes: Any = path
        super().__init__(dim=dim, vocab_size=len(codes.codes), init_std=init_std)
        self.path = path
        self.sampler = sampler or KineticSampler()

    def corrupt(
        self,
        ids: Int[Tensor, "B *L"],
        *,
        t: Float[Tensor, " B"] | None = None,
        generator: Generator | None = None,
    ) -> Int[Tensor, "B *L"]:
        """Codes at a time of each row; times are sampled where none are handed in.

        Raises:
            ValueError: another number of times than rows, or times outside [0, 1) (checked on CPU).
        """
        path: MetricPath = self.path
        if t is None:
            t = path.sample_times(len(ids), device=ids.device, generator=generator)
        check_shape("t", t, (len(ids),))
        return path.corrupt(ids, t, generator=generator)

    def decode(self, predict: Callable[[Tensor, int], Tensor], ids: Int[Tensor, "B *L"], **draws: Any) -> Int[Tensor, "B *L"]:
        """Noise to codes, pass by pass; see ``KineticSampler.sample``. ``predict`` runs the model around the head."""
        found: Tensor = self.sampler.sample(predict, ids, self.path, **draws)
        return found

    @torch.no_grad()
    def noise(self, *shape: int, generator: Generator | None = None) -> Int[Tensor, "..."]:
        """Uniform codes to begin with."""
        return torch.randint(self.vocab_size, shape, device=self.weight.device, generator=generator)
