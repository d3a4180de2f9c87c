"""A codebook without dead codes: codes that are rarely chosen move to features near them at every step.

Shapes: B images, K codes, D width of a code.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.tokenizers.bottlenecks.running_averages import RunningAverages, finite_or_warned
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokens import Latents


class ClusteringVectorQuantizer(RunningAverages, VectorQuantizer):
    """``VectorQuantizer`` whose unused codes, while training, are pulled to the feature of the batch that is nearest to them.

    Each process sees its own batch alone: under data parallelism the caller keeps ``codes`` and ``usage`` equal.

    Args:
        num_codes, dim, metric: see ``VectorQuantizer``.
        decay: of the running share of features that choose a code.

    Attributes:
        usage: (K,) that share; float32 whatever the module is cast to.

    Source: CVQ-VAE (arXiv 2307.15139), as in TA-TiTok (arXiv 2501.07730; bytedance/1d-tokenizer).
    """

    averages: ClassVar[tuple[str, ...]] = ("usage",)

    usage: Tensor

    def __init__(self, *, num_codes: int, dim: int, metric: Metric = "l2", decay: float = 0.99) -> None:
        # Without entropies: their graph would need the codes as they were before they move.
        super().__init__(num_codes=num_codes, dim=dim, metric=metric)
        self.decay = decay
        self.register_buffer("usage", torch.zeros(num_codes))

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis; while training, moves codes afterwards, so that result and losses are those before.

        Raises:
            ValueError: if a value is not finite.
        """
        latents = super().forward(features)
        if self.training and latents.ids is not None:
            self._move(features.detach().flatten(0, -2), latents.ids.flatten())
        return latents

    @torch.no_grad()
    def _move(self, features: Tensor, ids: Tensor) -> None:
        """Features that are not finite, which only a compiled graph lets through, move nothing; a warning says so."""
        finite = finite_or_warned(features)
        chosen = torch.bincount(ids, minlength=len(self.codes)) / len(ids)
        usage = torch.lerp(self.usage, chosen, 1 - self.decay)
        nearest = features[nearest_code(self.codes, features, self.metric)]
        # A code of the average share moves by exp(-1000), one that nothing chooses nearly all the way.
        pull = torch.exp(-10 * len(self.codes) * usage / (1 - self.decay) - 1e-3)
        wide = torch.promote_types(self.codes.dtype, torch.float32)
        codes = torch.lerp(self.codes.to(wide), nearest.to(wide), pull[:, None].to(wide))
        self.usage.copy_(torch.where(finite, usage, self.usage))
        self.codes.copy_(torch.where(finite, codes, self.codes))
