"""The head of metric-path discrete flow matching, as URSA has it.

Shapes: N rows, D width, B images, K codes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.heads.language import LMHead
from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.support.deprecation import former_keywords


class MetricFlowHead(LMHead):
    """Cross entropy on clean codes, given codes that were moved along a metric path; images are found by jumps.

    The trunk is told no time. URSA predicts each code one place before it, and leaves guidance off from time 0.9 on.

    Args:
        dim: D.
        path: a ``MetricPath``, which holds the codes.
        sampler: ``KineticSampler()`` if None.
        init_std: of the initial weights.

    Source: URSA (arXiv 2510.24717; baaivision/URSA).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MetricFlowHead
        >>> from mmblocks.layers.diffusion.metric_path import MetricPath
        >>> head = MetricFlowHead(dim=8, path=MetricPath(num_codes=16, code_dim=4))
        >>> ids = torch.randint(16, (2, 9))
        >>> torch.equal(head.corrupt(ids, t=torch.tensor([0.9999, 0.9999])), ids)  # time 1 is clean
        True
        >>> tuple(head.loss(torch.randn(9, 8), ids[0]).shape)
        (9,)
    """

    def __init__(self, *, dim: int, path: MetricPath, sampler: KineticSampler | None = None, init_std: float = 0.02) -> None:
        super().__init__(dim=dim, vocab_size=len(path.codes), init_std=init_std)
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
        if t is None:
            t = self.path.sample_times(len(ids), device=ids.device, generator=generator)
        check_shape("t", t, (len(ids),))
        return self.path.corrupt(ids, t, generator=generator)

    @former_keywords(taps="trajectory")
    def decode(
        self,
        predict: Callable[[Tensor, int], Tensor],
        ids: Int[Tensor, "B *L"],
        *,
        data: Int[Tensor, "S B *L"] | None = None,
        uniform: Float[Tensor, "S2 B *L"] | None = None,
        jumps: Int[Tensor, "S3 B *L"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Int[Tensor, "B *L"]:
        """Noise to codes, pass by pass; see ``KineticSampler.sample``. ``predict`` runs the model around the head."""
        return self.sampler.sample(
            predict, ids, self.path, data=data, uniform=uniform, jumps=jumps, generator=generator, trajectory=trajectory
        )

    @torch.no_grad()
    def noise(self, *shape: int, generator: Generator | None = None) -> Int[Tensor, "..."]:
        """Uniform codes to begin with."""
        return torch.randint(self.vocab_size, shape, device=self.weight.device, generator=generator)
