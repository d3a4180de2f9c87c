"""Drawing ids from logits: temperature, truncation, and the draw itself.

Shapes: N rows, V ids.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How freely ids are drawn.

    Args:
        temperature: divides the logits; 0 takes the likeliest id (greedy).
        top_k: keep the k likeliest ids, and those as likely as the k-th; None keeps all.
        top_p: keep the likeliest ids whose probabilities reach p together; None keeps all.

    Raises:
        ValueError: for values outside their ranges.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; accepted: 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; accepted: 1 or more, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; accepted: 0 < top_p <= 1, or None")


GREEDY = Sampling(temperature=0)
"""Always the likeliest id."""


def keep_top_k(logits: Float[Tensor, "N V"], k: int) -> Float[Tensor, "N V"]:
    """Minus infinity below the k-th largest logit of each row."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Float[Tensor, "N V"], p: float) -> Float[Tensor, "N V"]:
    """Minus infinity outside the smallest set of likeliest ids whose probability reaches p; never an empty set."""
    probability, ids = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = probability.cumsum(dim=-1) - probability >= p
    outside[..., 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, ids, outside), float("-inf"))


def truncate(logits: Float[Tensor, "N V"], sampling: Sampling) -> Float[Tensor, "N V"]:
    """Temperature, then top-k, then top-p, as the field orders them. Leaves greedy logits as they are."""
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return logits


def draw(
    logits: Float[Tensor, "N V"],
    sampling: Sampling,
    *,
    generator: Generator | None = None,
    gumbel: Float[Tensor, "N V"] | None = None,
) -> Int[Tensor, " N"]:
    """One id per row, by the Gumbel-max rule: the largest of logits + noise, which is a draw from their softmax.

    Args:
        logits: any real numbers; minus infinity is never drawn.
        sampling: temperature and truncation; the lowest id wins ties.
        generator: source of the noise, on the logits' device.
        gumbel: the noise itself, in place of a generator.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    if gumbel is None:
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
    return (truncate(logits, sampling) + gumbel).argmax(dim=-1)
