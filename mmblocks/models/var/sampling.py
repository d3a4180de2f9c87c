"""What VAR's sampling needs of a quantizer, what it gives, and its arithmetic on logits.

Shapes: B rows, L tokens of all scales together, h and w tokens of one scale (l together), C width of a code, K codes.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.layers.categorical import check_logits
from mmblocks.support.checks import check_finite

Scale = int | Sequence[int]
"""Rows and columns of a grid of tokens; one number for as many of either."""


@runtime_checkable
class ScaleQuantizer(Protocol):
    """What sampling needs of a tokenizer's bottleneck, such as ``MultiScaleQuantizer``."""

    def vectors(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N C"]:
        """Codes by index."""
        ...

    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N C"]:
        """The mixture of codes with these weights."""
        ...

    def add_scale(
        self, total: Float[Tensor, "B H W C"] | None, vectors: Float[Tensor, "B h w C"], index: int, /, *, scales: Sequence[Scale]
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B h2 w2 C"]]:
        """The map so far with the codes of a scale added, and what is read to predict the next scale."""
        ...


class VARSample(NamedTuple):
    """What was sampled.

    Attributes:
        ids: the codes of all scales, coarse first.
        z: the map that they add up to, for the tokenizer's decoder; with ``smooth`` that of the mixtures.
    """

    ids: Int[Tensor, "B L"]
    z: Float[Tensor, "B H W C"]


def guided(logits: Float[Tensor, "B2 l K"], rows: int, strength: float) -> Float[Tensor, "B l K"]:
    """Logits pushed away from those without class, which are the second half; all of them as they are if there is none."""
    if len(logits) == rows:
        return logits
    return (1 + strength) * logits[:rows] - strength * logits[rows:]


def smoothed(
    logits: Float[Tensor, "B l K"], share: float, gumbel: Float[Tensor, "B l K"] | None, generator: Generator | None
) -> Float[Tensor, "B l K"]:
    """Weights of a mixture; the temperature falls with the scale, as in MaskGIT.

    Raises:
        ValueError: logits that hold NaN or plus infinity, or are all minus infinity; noise that is not finite (checked on CPU).
    """
    check_logits(logits)
    if gumbel is None:
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
    check_finite("gumbel", gumbel)
    temperature = max(0.27 * (1 - share * 0.95), 0.005)
    return ((logits * (1 + share) + gumbel) / temperature).softmax(dim=-1)
