"""A codebook without dead codes: codes that are rarely chosen move to features near them at every step.

Shapes: B images, K codes, D width of a code.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn.functional import normalize

from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import (
    gather_equal,
    nan_if_any_is,
    num_of_each,
    several_processes,
    sum_of_all,
)
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check_in_all, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.running_averages import RunningAverages, finite_or_warned
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer


class ClusteringVectorQuantizer(RunningAverages, VectorQuantizer):
    """``VectorQuantizer`` whose unused codes, while training, are pulled to the feature of the batch that is nearest to them.

    With several processes the batch is that of all of them, so that codes that are equal at first stay so.

    Args:
        num_codes, dim, metric: see ``VectorQuantizer``.
        decay: of the running share of features that choose a code.

    Attributes:
        usage: (K,) that share; float32 whatever the module is cast to.

    Source: CVQ-VAE (arXiv 2307.15139), as in TA-TiTok (arXiv 2501.07730; bytedance/1d-tokenizer).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import ClusteringVectorQuantizer
        >>> quantizer = ClusteringVectorQuantizer(num_codes=16, dim=4)
        >>> before = quantizer.codes.detach().clone()
        >>> ids = quantizer(torch.randn(1, 5, 5, 4) + 10).ids
        >>> moved = (quantizer.codes != before).any(dim=1).nonzero().flatten()
        >>> set(moved.tolist()) == set(range(16)) - set(ids.flatten().tolist())  # the codes that nothing chose
        True
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
            ValueError: if the width is not D, or a value is not finite; while training, of any process.
        """
        if self.training:
            check_in_all(features, wrong_width(features, self.dim))
        latents = super().forward(features)
        if self.training and latents.ids is not None:
            self._move(features.detach().flatten(0, -2), latents.ids.flatten())
        return latents

    @torch.no_grad()
    def _move(self, features: Tensor, ids: Tensor) -> None:
        """Features that are not finite, which only a compiled graph lets through, move nothing; a warning says so."""
        num_features = sum(num_of_each(features))
        if not num_features:
            return
        finite = finite_or_warned(nan_if_any_is(features))
        counts = torch.bincount(ids, minlength=len(self.codes))
        sum_of_all(counts)
        usage = torch.lerp(self.usage, counts / num_features, 1 - self.decay)
        nearest = self._nearest_features(features)
        # A code of the average share moves by exp(-1000), one that nothing chooses nearly all the way.
        pull = torch.exp(-10 * len(self.codes) * usage / (1 - self.decay) - 1e-3)
        wide = torch.promote_types(self.codes.dtype, torch.float32)
        codes = torch.lerp(self.codes.to(wide), nearest.to(wide), pull[:, None].to(wide))
        self.usage.copy_(torch.where(finite, usage, self.usage))
        self.codes.copy_(torch.where(finite, codes, self.codes))

    def _nearest_features(self, features: Tensor) -> Tensor:
        """(K, D): for each code the feature nearest to it, of all processes."""
        if not several_processes():
            return features[nearest_code(self.codes, features, self.metric)]
        distance = features.new_full((len(self.codes),), torch.inf, dtype=torch.float32)
        found = features.new_zeros(self.codes.shape)
        if len(features):
            found = features[nearest_code(self.codes, features, self.metric)]
            distance = self._distances(found.float())
        # Of equals the first process's, as in one batch.
        nearest_process = torch.stack(gather_equal(distance)).argmin(dim=0)
        found = torch.where((nearest_process == distributed.get_rank())[:, None], found, 0)
        sum_of_all(found)
        return found

    def _distances(self, found: Tensor) -> Tensor:
        """How far each code is from a feature of its own, as ``metric`` counts."""
        codes = self.codes.float()
        if self.metric == "l2":
            return (codes - found).square().sum(dim=-1)
        if self.metric == "cosine":
            codes, found = normalize(codes, dim=-1), normalize(found, dim=-1)
        return -(codes * found).sum(dim=-1)
