"""Sampling ids from logits: temperature, truncation, and the choice itself.

Shapes: N rows, V ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.support.checks import check_finite, is_readable

NO_SAMPLE = -(2**62)
"""In place of an id where none can be sampled and a look would wait for the device: no table has it, nor with an offset added."""

VALID_LOGITS = "accepted: finite logits, and minus infinity beside them"
"""What a row is that an id can be sampled from, for messages."""

_TINY, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

_AT_ONCE = 1 << 15
"""Probabilities that are added up at once: as many as a processor holds near, in float64."""

_SMALL = 1e-3
"""Divided by less, logits of usual size may overflow: the largest becomes 0 before, which changes no probability."""


def _check_kind(name: str, value: object, kind: type, more: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; accepted: {'an int' if kind is Integral else 'a number'}{more}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How freely ids are sampled.

    Args:
        temperature: divides the logits; 0 takes the likeliest id (greedy), and so does what is close to it.
        top_k: keep the k likeliest ids, and those as likely as the k-th; None keeps all.
        top_p: keep the likeliest ids whose probabilities reach p together; None keeps all.

    Raises:
        TypeError: for values that are no numbers, or no integers.
        ValueError: for values outside their ranges.

    Examples:
        >>> import torch
        >>> from mmblocks import GREEDY, Sampling
        >>> from mmblocks.layers.categorical import truncate
        >>> truncate(torch.tensor([[1.0, 3.0, 2.0]]), Sampling(top_k=2)).tolist()
        [[-inf, 3.0, 2.0]]
        >>> Sampling(temperature=0.0) == GREEDY
        True
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        _check_kind("temperature", self.temperature, Real)
        if not 0 <= self.temperature <= _LARGEST:
            raise ValueError(f"temperature is {self.temperature}; accepted: 0 or more, in float32")
        if self.top_k is not None:
            _check_kind("top_k", self.top_k, Integral, " or None")
        if self.top_p is not None:
            _check_kind("top_p", self.top_p, Real, " or None")
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
    if sampling.temperature < _SMALL:
        logits = logits - logits.amax(dim=-1, keepdim=True)
    if sampling.temperature != 1:
        logits = (logits / max(sampling.temperature, _TINY)).clamp(max=_LARGEST)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return logits


def sample_ids(
    logits: Float[Tensor, "N V"],
    sampling: Sampling,
    *,
    generator: Generator | Sequence[Generator] | None = None,
    gumbel: Float[Tensor, "N V"] | None = None,
) -> Int[Tensor, " N"]:
    """One id per row, distributed as the softmax of its logits.

    With noise by the Gumbel-max rule: the largest of logits + noise. Without, on a CPU, where noise for each id takes long, by one
    random number a row, which falls into the share of one id.

    Args:
        logits: any real numbers; minus infinity is never sampled. At least one of a row is finite.
        sampling: temperature and truncation; the lowest id wins ties.
        generator: source of randomness, on the logits' device; or one for each row.
        gumbel: the noise itself, in place of a generator.

    Returns:
        The ids. On a GPU a row from which none can be sampled has ``NO_SAMPLE``: to raise would be to wait for the device.

    Raises:
        ValueError: a row that holds NaN or plus infinity, or nothing but minus infinity; noise that is not finite (checked on CPU).
    """
    if not logits.dtype.itemsize >= 4:  # noise is coarse in half precision, and may be infinite
        logits = logits.float()
    if sampling.temperature == 0:
        best, ids = logits.max(dim=-1)
        _check_best(logits, best)
    else:
        check_logits(logits)
        if gumbel is not None:
            check_finite("gumbel", gumbel)
        elif logits.device.type != "cpu":
            gumbel = -_exponential(logits, generator).log()
        ids = _by_shares(logits, sampling, generator) if gumbel is None else (truncate(logits, sampling) + gumbel).argmax(dim=-1)
    return ids if is_readable(logits) else torch.where(logits.amax(dim=-1).isfinite(), ids, NO_SAMPLE)


def _exponential(logits: Float[Tensor, "N V"], generator: Generator | Sequence[Generator] | None) -> Float[Tensor, "N V"]:
    if not isinstance(generator, Sequence):
        return torch.empty_like(logits).exponential_(generator=generator)
    return torch.stack([torch.empty_like(row).exponential_(generator=own) for row, own in zip(logits, generator, strict=True)])


def _uniform(rows: int, device: torch.device, generator: Generator | Sequence[Generator] | None) -> Float[Tensor, "N 1"]:
    if not isinstance(generator, Sequence):
        return torch.rand(rows, 1, dtype=torch.float64, device=device, generator=generator)
    return torch.cat([torch.rand(1, 1, dtype=torch.float64, device=device, generator=own) for own in generator])


def _by_shares(
    logits: Float[Tensor, "N V"], sampling: Sampling, generator: Generator | Sequence[Generator] | None
) -> Int[Tensor, " N"]:
    """The id into whose share of the row's probabilities, laid side by side, a random number falls."""
    where = _uniform(len(logits), logits.device, generator)
    rows = max(1, _AT_ONCE // max(1, logits.shape[-1]))
    found = []
    for part, at in zip(logits.split(rows), where.split(rows), strict=True):
        ends = truncate(part, sampling).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        whole = ends[:, -1:]
        below = torch.minimum(at * whole, whole.nextafter(torch.zeros_like(whole)))  # rounded up, it would be in no share
        found.append(torch.searchsorted(ends, below, right=True)[:, 0])
    return torch.cat(found)


def check_logits(logits: Float[Tensor, "*N V"]) -> None:
    """Refuses rows from which no id can be sampled: NaN would win, and of equal infinities the first.

    Raises:
        ValueError: a row that holds NaN or plus infinity, or nothing but minus infinity (checked on CPU).
    """
    if is_readable(logits) and logits.numel():
        _check_best(logits, logits.amax(dim=-1))


def _check_best(logits: Float[Tensor, "*N V"], best: Float[Tensor, "*N"]) -> None:
    """The same, of the largest of each row, which is NaN where there is one."""
    if not is_readable(logits) or not logits.numel():
        return
    if not math.isfinite(best.sum().item()) and not bool(best.isfinite().all()):
        best = best.detach().flatten()
        row = int((~best.isfinite()).nonzero()[0])
        kind = "are all minus infinity" if float(best[row]) == float("-inf") else "hold NaN or plus infinity"
        raise ValueError(f"the logits of row {row} {kind}; {VALID_LOGITS}")
