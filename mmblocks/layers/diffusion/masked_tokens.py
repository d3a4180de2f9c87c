"""Masked discrete diffusion: hide some codes, predict them, keep the surest, and hide fewer.

Shapes: B rows, L tokens of a row, V codes, S steps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.categorical import Sampling, check_logits, sample_ids
from mmblocks.layers.diffusion.denoising_samplers import Steps, run_steps
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.support.checks import check_finite
from mmblocks.support.deprecation import former_keywords, former_method


def masked_share(
    schedule: str, t: Float[Tensor, "*B"], *, start: float = -3.0, stop: float = 3.0, tau: float = 1.0
) -> Float[Tensor, "*B"]:
    """How much of an image is hidden at a time in [0, 1]; all of it at 0, nothing at 1.

    Args:
        schedule: "cosine", "linear", "pow" with an exponent ("pow2", "pow0.5"): 1 - t ** p, or "sigmoid".
        t: the time.
        start: where the piece of the sigmoid that is used begins.
        stop: where it ends.
        tau: the width of the sigmoid.

    Raises:
        ValueError: for another name.

    Source: MaskGIT (arXiv 2202.04200), Muse (arXiv 2301.00704), Show-o (arXiv 2408.12528; showlab/Show-o).
    """
    if schedule == "cosine":
        return (t * (math.pi / 2)).cos()
    if schedule == "linear":
        return 1 - t
    if schedule == "sigmoid":
        first, last = (torch.tensor(end / tau, device=t.device).sigmoid() for end in (start, stop))
        return ((last - ((t * (stop - start) + start) / tau).sigmoid()) / (last - first)).clamp(1e-6, 1.0)
    if schedule.startswith("pow"):
        return 1 - t ** float(schedule.removeprefix("pow"))
    raise ValueError(f"schedule is {schedule!r}; accepted: 'cosine', 'linear', 'sigmoid', 'pow' with an exponent")


class Masked(NamedTuple):
    """Rows of which some ids are hidden.

    Attributes:
        ids: with the mask's id at hidden places.
        mask: True where an id is hidden.
        share: how much of each row was to be hidden.
    """

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    share: Float[Tensor, " B"]

    def weight_of_all(self, least: float = 0.3) -> Float[Tensor, "B L"]:
        """Weights to learn the seen places too: between ``least`` and 1, the more is hidden; 1 at hidden places."""
        return 1 - (~self.mask).float() * (1 - self.share[:, None]) * (1 - least)


class MaskedTokens(Block):
    """Hides a random share of the ids of each row.

    Args:
        mask_id: what hidden ids become.
        schedule: how a uniform number becomes a share; see ``masked_share``.
        least: smallest share.
    """

    def __init__(self, *, mask_id: int, schedule: str = "cosine", least: float = 0.0) -> None:
        super().__init__()
        if not 0 <= least <= 1:
            raise ValueError(f"least is {least}; accepted: 0 to 1")
        masked_share(schedule, torch.zeros(1, device="cpu"))  # an unknown name is refused here
        self.mask_id, self.schedule, self.least = mask_id, schedule, least

    def corrupt(
        self,
        ids: Int[Tensor, "B L"],
        *,
        t: Float[Tensor, " B"] | None = None,
        order: Float[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Masked:
        """At least one id of each row is hidden.

        Args:
            ids: codes.
            t: numbers in [0, 1], the times of the rows.
            order: numbers in [0, 1] that say which places are hidden.
            generator: source of randomness, where these are not handed in.

        Raises:
            ValueError: rows without ids, or random values of another shape.
        """
        batch, length = ids.shape
        if length == 0:
            raise ValueError("ids has rows without ids; accepted: at least one id to hide")
        if t is None:
            t = torch.rand(batch, device=ids.device, generator=generator)
        if order is None:
            order = torch.rand(batch, length, device=ids.device, generator=generator)
        check_shape("t", t, (batch,))
        check_shape("order", order, (batch, length))
        share = masked_share(self.schedule, t).clamp(min=self.least)
        count = (length * share).round().clamp(min=1)
        # The sorting order itself serves as ranks, as upstream has it: a random permutation all the same.
        mask = order.argsort(dim=-1) < count[:, None]
        return Masked(torch.where(mask, self.mask_id, ids), mask, share)


class ConfidenceSampler(Block):
    """Predicts all hidden codes at once, and hides the least sure of them again, fewer each time.

    Confidence is the sampled code's log probability plus Gumbel noise, whose temperature falls.

    Args:
        num_steps: S.
        schedule: how much stays hidden after each step; see ``masked_share``.
        temperature: of the noise in the choice of places.
        cooling: the temperature in step k of S is multiplied by 1 - (k + 1) / S: of its first value ("linear", MaskGIT and
            MAGVIT), or of that of the step before ("cumulative", Show-o).
        sampling: how codes are sampled.

    Source: MaskGIT (arXiv 2202.04200); Show-o (arXiv 2408.12528; showlab/Show-o).
    """

    def __init__(
        self,
        *,
        num_steps: int = 18,
        schedule: str = "cosine",
        temperature: float = 1.0,
        cooling: Literal["linear", "cumulative"] = "linear",
        sampling: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if num_steps < 1 or not 0 <= temperature < math.inf:
            raise ValueError(f"num_steps is {num_steps}, temperature {temperature}; accepted: 1 or more, 0 or more")
        if cooling not in ("linear", "cumulative"):
            raise ValueError(f"cooling is {cooling!r}; accepted: 'linear', 'cumulative'")
        self.num_steps, self.schedule, self.temperature, self.cooling = num_steps, schedule, temperature, cooling
        self.sampling = Sampling(**(sampling or {}))  # type: ignore[arg-type]

    @former_keywords(drawn="sampled")
    @torch.no_grad()
    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        ids: Int[Tensor, "B L"],
        mask_id: int,
        *,
        sampled: Int[Tensor, "S B L"] | None = None,
        gumbel: Float[Tensor, "S B L"] | None = None,
        generator: Generator | None = None,
        allowed: Bool[Tensor, " V"] | None = None,
    ) -> Int[Tensor, "B L"]:
        """Fills the hidden places in; ids that are there already stay.

        Args:
            predict: (ids, index of the step) -> logits (B, L, V), guided where there is guidance.
            ids: codes, and ``mask_id`` where one is to be found.
            mask_id: what stands at hidden places.
            sampled: the codes sampled in each step, in place of a generator.
            gumbel: the noise of the confidence in each step, in place of a generator.
            generator: source of randomness.
            allowed: False at ids that are no codes, where the logits are those of a whole vocabulary, such as ``CodeIds.allowed``
                gives: neither text nor the id that hides a code is sampled then. None allows all.

        Raises:
            ValueError: no hidden place, another number of allowed ids than of logits, random values of another shape or that are
                not finite; logits that hold NaN or plus infinity, or are all minus infinity (both checked on CPU; elsewhere the
                look-up of such a code stops the program).
        """
        steps = self.stepwise(ids, mask_id, sampled=sampled, gumbel=gumbel, generator=generator, allowed=allowed)
        return run_steps(steps, predict)

    def stepwise(
        self,
        ids: Int[Tensor, "B L"],
        mask_id: int,
        *,
        sampled: Int[Tensor, "S B L"] | None = None,
        gumbel: Float[Tensor, "S B L"] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        allowed: Bool[Tensor, " V"] | None = None,
    ) -> Steps:
        """``sample`` as a coroutine: yields (ids, index of the step), is sent logits (B, L, V), and returns the ids.

        Each row may have a generator of its own.
        """
        if not bool((ids == mask_id).any()):
            raise ValueError(f"ids has no {mask_id}; accepted: at least one hidden place")
        for name, given in (("sampled", sampled), ("gumbel", gumbel)):
            if given is not None:
                check_shape(name, given, (self.num_steps, *ids.shape))
        if gumbel is not None:
            check_finite("gumbel", gumbel)
        temperature, found = self.temperature, ids
        for step in range(self.num_steps):
            logits = yield ids, step
            if allowed is not None:
                check_shape("allowed", allowed, logits.shape[-1:])
                logits = logits.masked_fill(~allowed, float("-inf"))
            check_logits(logits)
            hidden = ids == mask_id
            chosen = sampled[step] if sampled is not None else _by_row(self._sample, logits, generator)
            found = torch.where(hidden, chosen, ids)
            done = (step + 1) / self.num_steps
            if self.cooling == "cumulative":
                temperature *= 1 - done
            else:
                temperature = self.temperature * (1 - done)
            noise = gumbel[step] if gumbel is not None else _by_row(_gumbel, chosen, generator)
            chance = logits.float().softmax(dim=-1).gather(-1, found[..., None])[..., 0]
            chance = torch.where(hidden, chance, torch.finfo(chance.dtype).max)
            again = self._hide(chance.clamp(min=1e-20).log() + temperature * noise, hidden, done)
            ids = torch.where(again, mask_id, found)
        return found

    walk = former_method("walk", "sample")

    def _sample(self, logits: Tensor, generator: Generator | None) -> Tensor:
        return sample_ids(logits.float().flatten(0, 1), self.sampling, generator=generator).view(logits.shape[:-1])

    def _hide(self, confidence: Tensor, hidden: Tensor, done: float) -> Tensor:
        """True at the least sure places, as many as the schedule leaves hidden; one at least, and fewer than before."""
        share = masked_share(self.schedule, torch.tensor(done, device=confidence.device))
        wanted = (confidence.shape[-1] * share).floor()
        count = torch.minimum(hidden.sum(dim=-1, keepdim=True) - 1, wanted).clamp(min=1).long()
        return confidence < confidence.sort(dim=-1).values.gather(-1, count.clamp(max=confidence.shape[-1] - 1))


def _gumbel(like: Tensor, generator: Generator | None) -> Tensor:
    return -torch.empty(like.shape, device=like.device).exponential_(generator=generator).log()


def _by_row(
    random: Callable[[Tensor, Generator | None], Tensor], rows: Tensor, generator: Generator | Sequence[Generator] | None
) -> Tensor:
    """Something random of all rows at once, or of each by a generator of its own."""
    if not isinstance(generator, Sequence):
        return random(rows, generator)
    return torch.cat([random(row[None], own) for row, own in zip(rows, generator, strict=True)])
