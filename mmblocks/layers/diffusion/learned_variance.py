"""Diffusion whose network says, besides the noise, how much of it each step back should add.

Shapes: N rows, C channels, T times, S sampling times.
"""

import math
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.layers.diffusion.noise_schedules import Schedule


class Posterior(NamedTuple):
    """Of the step to a less noisy time, given the data: by time, in float64 on the CPU.

    Attributes:
        times: the training's time that the network is told.
        betas: variance that the step adds.
        data, noised: factors of the data and of the noised data in the mean.
        clean, noise: factors by which noised data and predicted noise give the data.
        small, large: logarithms of the least and the largest variance.
    """

    times: Int[Tensor, " S"]
    betas: Float64[Tensor, " S"]
    data: Float64[Tensor, " S"]
    noised: Float64[Tensor, " S"]
    clean: Float64[Tensor, " S"]
    noise: Float64[Tensor, " S"]
    small: Float64[Tensor, " S"]
    large: Float64[Tensor, " S"]

    @classmethod
    def of(cls, alphas_cumprod: Float64[Tensor, " T"], times: Int[Tensor, " S"]) -> "Posterior":
        """For the chosen times alone."""
        kept = alphas_cumprod[times]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        # The first time's variance is zero; its logarithm is taken from the second.
        small = torch.cat([variance[1:2], variance[1:]]) if len(times) > 1 else betas
        return cls(
            times=times,
            betas=betas,
            data=betas * before.sqrt() / (1 - kept),
            noised=(1 - before) * (1 - betas).sqrt() / (1 - kept),
            clean=(1 / kept).sqrt(),
            noise=(1 / kept - 1).sqrt(),
            small=small.log(),
            large=betas.log(),
        )


class LearnedVariancePath(DiffusionPath):
    """Diffusion whose network gives the noise and, as many channels again, where the step's variance lies in its range.

    The variance is learned from the variational bound, in bits per channel, which does not reach the noise prediction.
    It is not scaled down: for a network that has not learned yet it may be far above the squared error.

    Args:
        num_times, schedule, beta_start, beta_end: as in ``DiffusionPath``.

    Source: improved DDPM (arXiv 2102.09672), as MAR (arXiv 2406.11838; LTH14/mar) uses it.
    """

    num_outputs: ClassVar[int] = 2

    def __init__(
        self, *, num_times: int = 1000, schedule: Schedule = "cosine", beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> None:
        super().__init__(num_times=num_times, schedule=schedule, beta_start=beta_start, beta_end=beta_end)
        self._posterior_on: dict[torch.device, Tensor] = {}

    @cached_property
    def posterior(self) -> Posterior:
        """Of the training's own times."""
        return Posterior.of(self.alphas_cumprod, torch.arange(self.num_times, device="cpu"))

    def losses(
        self, output: Float[Tensor, "N C2"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Squared error of the noise, plus the bound."""
        error, bound = self.terms(output, x, noise, t)
        return error + bound

    def terms(
        self, output: Float[Tensor, "N C2"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Mean squared error of the noise, and the bound in bits per channel."""
        predicted, share = output.float().chunk(2, dim=-1)
        error = (predicted - noise).square().mean(dim=-1)

        if t.device not in self._posterior_on:
            self._posterior_on[t.device] = torch.stack([column.float() for column in self.posterior[2:]]).to(t.device)
        data, noised, clean, amount, small, large = self._posterior_on[t.device][:, t, None]
        x_t = self.corrupt(x, noise, t)
        true_mean = data * x + noised * x_t
        mean = data * (clean * x_t - amount * predicted.detach()) + noised * x_t
        logvar = small + (share + 1) / 2 * (large - small)
        divergence = 0.5 * (logvar - small - 1 + (small - logvar).exp() + (true_mean - mean).square() * (-logvar).exp())
        likelihood = _discretised_log_likelihood(x, mean, 0.5 * logvar)
        bound = torch.where(t[:, None] == 0, -likelihood, divergence).mean(dim=-1) / math.log(2)
        return error, bound


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Of values in [-1, 1] in bins of 1/127.5 under a Gaussian; the outermost bins reach to infinity."""
    centred, precise = x - mean, (-log_std).exp()
    below = _normal_below(precise * (centred - 1 / 255))
    up_to = _normal_below(precise * (centred + 1 / 255))
    inside = (up_to - below).clamp(min=1e-12).log()
    lowest, highest = up_to.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inside))


def _normal_below(x: Tensor) -> Tensor:
    """The normal distribution function by the tanh approximation that the published losses use."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
