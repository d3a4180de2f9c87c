"""How the codes of a scale are chosen, given their logits.

Shapes: S spans, n tokens of a scale, C width of a code, K codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.heads.scale_tokens import AddsScales
from mmblocks.layers.categorical import Sampling, check_logits, sample_ids, truncate
from mmblocks.support.checks import check_finite


@runtime_checkable
class ScaleQuantizer(AddsScales, Protocol):
    """What sampling needs of a tokenizer's bottleneck, such as ``MultiScaleQuantizer``."""

    def vectors(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N C"]:
        """Codes by index."""
        ...

    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N C"]:
        """The mixture of codes with these weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScaleSampler:
    """Samples the codes of a scale; a ``Choice``.

    Args:
        quantizer: whose codes are read.
        sampling: temperature and truncation.
        sources: of randomness: one for all spans, or one for each.
        smooth: read mixtures of codes, as the Gumbel softmax gives them, sharper from scale to scale, in place of codes.
        dtype: of the mixtures' weights.
        ids: of each scale (S, n), in place of sampled ones.
        gumbel: the noise itself for each scale (S, n, K), standard Gumbel.
        smoothing_gumbel: likewise for the mixtures.

    Examples:
        >>> import torch
        >>> from mmblocks.heads.scale_sampling import ScaleSampler
        >>> from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
        >>> choose = ScaleSampler(quantizer=MultiScaleQuantizer(dim=4, num_codes=8, scales=(1, 2)))
        >>> ids, vectors = choose(torch.randn(3, 1, 8), 0, 0.0)
        >>> tuple(ids.shape), tuple(vectors.shape)
        ((3, 1), (3, 1, 4))
    """

    quantizer: ScaleQuantizer
    sampling: Sampling = field(default_factory=Sampling)
    sources: Sequence[Generator | None] = (None,)
    smooth: bool = False
    dtype: torch.dtype = torch.float32
    ids: Sequence[Int[Tensor, "S _"]] | None = None
    gumbel: Sequence[Float[Tensor, "S _ K"]] | None = None
    smoothing_gumbel: Sequence[Float[Tensor, "S _ K"]] | None = None

    def __call__(self, logits: Float[Tensor, "S n K"], step: int, share: float) -> tuple[Tensor, Tensor]:
        """Codes (S, n), and what is read for them (S, n, C).

        Raises:
            ValueError: logits that hold NaN or plus infinity, or are all minus infinity; noise that is not finite (checked on CPU).
        """
        ids = self._sampled(logits, step) if self.ids is None else self.ids[step]
        if not self.smooth:
            return ids, self.quantizer.vectors(ids)
        kept = truncate(logits.flatten(0, 1), self.sampling).view_as(logits)
        check_logits(kept)
        gumbel = self._gumbel(kept) if self.smoothing_gumbel is None else self.smoothing_gumbel[step]
        check_finite("gumbel", gumbel)
        temperature = max(0.27 * (1 - share * 0.95), 0.005)  # falls with the scale, as in MaskGIT
        weights = ((kept * (1 + share) + gumbel) / temperature).softmax(dim=-1)
        return ids, self.quantizer.mix(weights.to(self.dtype))

    def _sampled(self, logits: Tensor, step: int) -> Int[Tensor, "S n"]:
        count, parts = logits.shape[1], len(self.sources)
        noises = [None] * parts if self.gumbel is None else [part.flatten(0, 1) for part in self.gumbel[step].tensor_split(parts)]
        found = [
            sample_ids(part.flatten(0, 1), self.sampling, generator=source, gumbel=noise).view(-1, count)
            for part, source, noise in zip(logits.tensor_split(parts), self.sources, noises, strict=True)
        ]
        return torch.cat(found)

    def _gumbel(self, logits: Tensor) -> Tensor:
        parts = zip(logits.tensor_split(len(self.sources)), self.sources, strict=True)
        return torch.cat([-torch.empty_like(part).exponential_(generator=source).log() for part, source in parts])
