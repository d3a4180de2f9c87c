"""Discrete flow matching along a metric: codes near the true one become likely first.

Time 0 is uniform noise, 1 the data. Shapes: B rows, L codes of a row, K codes of width C, S steps.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import normalize

from mmblocks.block import Block
from mmblocks.layers.categorical import check_logits
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.support.checks import is_readable
from mmblocks.support.deprecation import former_keywords, former_method


class MetricPath(Block):
    """``p_t(x | x1) = softmax(-beta(t) * d(x, x1))``: ``beta = c * (t / (1 - t)) ** alpha``, squared distances of unit codes.

    Args:
        num_codes, code_dim: K and C.
        alpha, c: how beta grows.
        shift: how much longer the path stays noisy.
        eps: least length by which codes are divided.

    ``codes`` is a buffer to be filled with the tokenizer's codebook, as it is.

    Source: kinetic optimal discrete flow matching (arXiv 2412.03487); URSA (arXiv 2510.24717; baaivision/URSA).
    """

    codes: Tensor

    def __init__(
        self, *, num_codes: int, code_dim: int, alpha: float = 0.9, c: float = 3.0, shift: float = 1.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if not all(0 < value < math.inf for value in (alpha, c, shift)):
            raise ValueError(f"alpha is {alpha}, c {c}, shift {shift}; accepted: above 0, and finite")
        self.alpha, self.c, self.shift, self.eps = alpha, c, shift, eps
        self.register_buffer("codes", torch.empty(num_codes, code_dim).normal_())

    @property
    def unit_codes(self) -> Float[Tensor, "K C"]:
        """The codes at length one, in float32."""
        return normalize(self.codes.float(), dim=-1, eps=self.eps)

    def shifted(self, t: Float64[Tensor, "*B"] | Float[Tensor, "*B"]) -> Tensor:
        """Times as ``shift`` moves them."""
        rest = 1 - t
        return 1 - self.shift * rest / (1 + (self.shift - 1) * rest)

    def sample_times(
        self,
        count: int,
        *,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
        uniform: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Times to train at, below 1; ``uniform`` are the numbers in [0, 1] that they come from."""
        if uniform is None:
            uniform = torch.rand(count, device=device, generator=generator)
        check_shape("uniform", uniform, (count,))
        return self.shifted(uniform * 0.999)

    draw_times = former_method("draw_times", "sample_times")

    def distances(self, ids: Int[Tensor, "B *L"]) -> Float[Tensor, "B *L K"]:
        """Squared distances of these codes from all codes."""
        codes = self.unit_codes
        lengths = codes.square().sum(dim=-1)
        return lengths[ids][..., None] + lengths - 2 * (codes[ids] @ codes.T)

    def probabilities(self, ids: Int[Tensor, "B *L"], t: Float[Tensor, " B"] | float) -> Float[Tensor, "B *L K"]:
        """Of each code at time t, where ``ids`` are the data.

        Raises:
            ValueError: times outside [0, 1).
        """
        return (-self._beta(t, ids.ndim) * self.distances(ids)).softmax(dim=-1)

    def corrupt(
        self, ids: Int[Tensor, "B *L"], t: Float[Tensor, " B"], *, generator: Generator | None = None
    ) -> Int[Tensor, "B *L"]:
        """Codes at time t."""
        return _sample(self.probabilities(ids, t), generator)

    def velocity(self, now: Int[Tensor, "B *L"], data: Int[Tensor, "B *L"], t: float) -> Float[Tensor, "B *L K"]:
        """Rates of change to each code: to nearer ones alone, and to none at time 0."""
        rate = self.c * self.alpha * t ** (self.alpha - 1) / (1 - t) ** (self.alpha + 1) if t > 0 else 0.0
        distances = self.distances(data)
        nearer = (distances.gather(-1, now[..., None]) - distances).relu()
        return (-self._beta(t, data.ndim) * distances).softmax(dim=-1) * (rate * nearer)

    def _beta(self, t: Tensor | float, num_axes: int) -> Tensor | float:
        if isinstance(t, Tensor):
            if is_readable(t) and bool(((t < 0) | (t >= 1)).any()):
                raise ValueError(f"t lies in [{float(t.min())}, {float(t.max())}]; accepted: 0 to below 1")
            return self.c * (t / (1 - t)).pow(self.alpha).view(-1, *[1] * num_axes)
        if not 0 <= t < 1:
            raise ValueError(f"t is {t}; accepted: 0 to below 1")
        return float(self.c * (t / (1 - t)) ** self.alpha)


class KineticSampler(Block):
    """Codes jump to nearer ones at the path's rates, towards data that are sampled anew from the model in each step.

    The first step never moves a code, since nothing moves at time 0; the last takes what the model predicts.

    Args:
        num_steps: S.
    """

    def __init__(self, *, num_steps: int = 25) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; accepted: 1 or more")
        self.num_steps = num_steps

    def times(self, path: MetricPath) -> Float64[Tensor, " S"]:
        """From 0 on, on the CPU."""
        return path.shifted(torch.arange(self.num_steps, dtype=torch.float64, device="cpu") / self.num_steps)

    @former_keywords(taps="trajectory")
    @torch.no_grad()
    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        ids: Int[Tensor, "B *L"],
        path: MetricPath,
        *,
        data: Int[Tensor, "S B *L"] | None = None,
        uniform: Float[Tensor, "S2 B *L"] | None = None,
        jumps: Int[Tensor, "S3 B *L"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Int[Tensor, "B *L"]:
        """Noise to codes.

        Args:
            predict: (codes now, index of the step) -> logits (B, *L, K) of the data.
            ids: what is begun with, uniformly distributed.
            path: the metric path.
            data: the codes sampled from the logits, in place of a generator.
            uniform: numbers in [0, 1] that decide which codes jump, of all steps but the last.
            jumps: where to, for those that jump.
            generator: source of randomness.
            trajectory: a list that the codes after each step are appended to.

        Raises:
            ValueError: random values of another shape; logits that hold NaN or plus infinity, or are all minus infinity (checked on
                CPU).
        """
        for name, given, least in (("data", data, 0), ("uniform", uniform, 1), ("jumps", jumps, 1)):
            if given is not None and (len(given) < self.num_steps - least or given.shape[1:] != ids.shape):
                wanted = (self.num_steps - least, *ids.shape)
                raise ValueError(f"{name} has shape {tuple(given.shape)}; accepted: {wanted}")
        times = self.times(path).tolist()
        for step, time in enumerate(times):
            logits = predict(ids, step)
            check_logits(logits)
            found = data[step] if data is not None else _sample(logits.float().softmax(dim=-1), generator)
            if step + 1 == self.num_steps:
                ids = found
            else:
                velocity = path.velocity(ids, found, time)
                chance = self.jump_chance(velocity, ids, times[step + 1] - time)
                share = uniform[step] if uniform is not None else torch.empty_like(chance).uniform_(generator=generator)
                goal = jumps[step] if jumps is not None else _sample(velocity + 1e-30, generator)
                ids = torch.where(share < chance, goal, ids)
            if trajectory is not None:
                trajectory.append(ids)
        return ids

    walk = former_method("walk", "sample")

    def jump_chance(self, velocity: Float[Tensor, "B *L K"], ids: Int[Tensor, "B *L"], step: float) -> Float[Tensor, "B *L"]:
        """How likely a code leaves its place within a step of time."""
        return 1 - (-step * velocity.scatter(-1, ids[..., None], 0).sum(dim=-1)).exp()


def _sample(chances: Tensor, generator: Generator | None) -> Tensor:
    return chances.flatten(0, -2).multinomial(1, generator=generator).view(chances.shape[:-1])
