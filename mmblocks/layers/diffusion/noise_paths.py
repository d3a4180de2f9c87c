"""From data to noise: how a target is corrupted at a time, and what a network is then asked for.

A path has no parameters. Times are sampled and handed around in the path's own unit, whole numbers here (real ones in
``rectified_flow``); ``net_time`` says what the network is told. Conventions differ between methods without a trace in the weights,
so each is an argument with a name.

Shapes: N rows, C channels, T times.
"""

from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.noise_schedules import Schedule, betas_of, zero_terminal_snr
from mmblocks.support.checks import check_range
from mmblocks.support.deprecation import former_method


@runtime_checkable
class NoisePath(Protocol):
    """What a denoising head asks of a path.

    ``num_outputs`` is how many channels the network gives per channel of the target; guidance reads the first of them.
    """

    num_outputs: ClassVar[int]

    def sample_times(self, count: int, device: torch.device, generator: Generator | None = None) -> Real[Tensor, " N"]:
        """Times to train at."""
        ...

    def check_times(self, t: Tensor) -> None:
        """Raises ``ValueError`` for times out of range."""
        ...

    def net_time(self, t: Real[Tensor, " N"]) -> Tensor:
        """What the network is told."""
        ...

    def corrupt(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Real[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Data with the noise of its time."""
        ...

    def losses(
        self, output: Float[Tensor, "N C2"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Real[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """How far the network's output is from what it predicts."""
        ...


@runtime_checkable
class TwoEndedPath(NoisePath, Protocol):
    """A path whose times have a cleanest and a noisiest one."""

    @property
    def ends(self) -> tuple[int, int]:
        """The cleanest time and the noisiest."""
        ...


def _check_whole(t: Tensor, count: int) -> None:
    if t.is_floating_point():
        raise ValueError(f"t is {t.dtype}; accepted: whole numbers from 0 to {count - 1}")
    check_range("t", t, count)


class DiffusionPath(Block):
    """Gaussian diffusion: ``sqrt(kept) * x + sqrt(1 - kept) * noise``; time 0 is nearly clean, the last nearly noise.

    Args:
        num_times: T.
        schedule, beta_start, beta_end: see ``noise_schedules.betas_of``.
        zero_terminal_snr: whether the last time is pure noise.
        prediction: what the network predicts: "noise", or "velocity", sqrt(kept) * noise - sqrt(1 - kept) * x.

    Source: DDPM (arXiv 2006.11239); velocity: arXiv 2202.00512.
    """

    num_outputs: ClassVar[int] = 1

    def __init__(
        self,
        *,
        num_times: int = 1000,
        schedule: Schedule = "cosine",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
        prediction: Literal["noise", "velocity"] = "noise",
    ) -> None:
        super().__init__()
        if prediction not in ("noise", "velocity"):
            raise ValueError(f"prediction is {prediction!r}; accepted: 'noise', 'velocity'")
        self.num_times = num_times
        self.schedule, self.beta_start, self.beta_end = schedule, beta_start, beta_end
        self.zero_terminal_snr = zero_terminal_snr
        self.prediction = prediction
        self._on_device: dict[torch.device, Tensor] = {}
        betas_of(schedule, 2)  # an unknown name is refused here

    @property
    def ends(self) -> tuple[int, int]:
        """The cleanest time and the noisiest."""
        return 0, self.num_times - 1

    @cached_property
    def alphas_cumprod(self) -> Float64[Tensor, " T"]:
        """How much of the data's variance is kept at each time, on the CPU."""
        kept = (1 - betas_of(self.schedule, self.num_times, self.beta_start, self.beta_end)).cumprod(0)
        return zero_terminal_snr(kept) if self.zero_terminal_snr else kept

    def sample_times(self, count: int, device: torch.device, generator: Generator | None = None) -> Int[Tensor, " N"]:
        """Uniform over all times."""
        return torch.randint(self.num_times, (count,), device=device, generator=generator)

    draw_times = former_method("draw_times", "sample_times")

    def check_times(self, t: Tensor) -> None:
        """Raises ``ValueError`` for times that are no whole numbers in range."""
        _check_whole(t, self.num_times)

    def net_time(self, t: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The index of the time."""
        return t

    def corrupt(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Data with the noise of its time."""
        data, amount = self._roots(t)
        return data * x + amount * noise

    def target(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """What the network predicts."""
        if self.prediction == "noise":
            return noise
        data, amount = self._roots(t)
        return data * noise - amount * x

    def losses(
        self, output: Float[Tensor, "N C2"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Mean squared error over the channels."""
        return (output.float() - self.target(x, noise, t)).square().mean(dim=-1)

    def _roots(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes of data and noise, (N, 1) each, in float32."""
        if t.device not in self._on_device:
            kept = self.alphas_cumprod
            self._on_device[t.device] = torch.stack([kept.sqrt(), (1 - kept).sqrt()]).float().to(t.device)
        data, amount = self._on_device[t.device][:, t, None]
        return data, amount


class FlowPath(Block):
    """A straight line: ``sigma * noise + (1 - sigma) * x``; the network predicts ``noise - x``.

    Times are places in a table of falling sigmas: time 0 is pure noise. The network is told ``sigma * num_times``.

    Args:
        num_times: length of the table.
        shift: how much longer the path stays noisy: sigma becomes shift * sigma / (1 + (shift - 1) * sigma).
        density: how times are distributed: "logit_normal" (the sigmoid of a normal variable) or "uniform".

    Source: flow matching (arXiv 2210.02747) as in Stable Diffusion 3 (arXiv 2403.03206) and NOVA (arXiv 2412.14169;
    baaivision/NOVA).
    """

    num_outputs: ClassVar[int] = 1

    def __init__(
        self, *, num_times: int = 1000, shift: float = 1.0, density: Literal["logit_normal", "uniform"] = "logit_normal"
    ) -> None:
        super().__init__()
        if shift <= 0:
            raise ValueError(f"shift is {shift}; accepted: above 0")
        if density not in ("logit_normal", "uniform"):
            raise ValueError(f"density is {density!r}; accepted: 'logit_normal', 'uniform'")
        self.num_times, self.shift, self.density = num_times, shift, density
        self._on_device: dict[torch.device, Tensor] = {}

    @property
    def ends(self) -> tuple[int, int]:
        """The cleanest time and the noisiest."""
        return self.num_times - 1, 0

    @cached_property
    def sigmas(self) -> Float64[Tensor, " T"]:
        """How noisy each time is, falling, on the CPU."""
        even = torch.arange(self.num_times, 0, -1, dtype=torch.float64, device="cpu") / self.num_times
        return self.shifted(even)

    def shifted(self, sigma: Float64[Tensor, "*S"]) -> Float64[Tensor, "*S"]:
        """Sigmas as ``shift`` moves them."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def sample_times(self, count: int, device: torch.device, generator: Generator | None = None) -> Int[Tensor, " N"]:
        """Places in the table."""
        if self.density == "uniform":
            return torch.randint(self.num_times, (count,), device=device, generator=generator)
        share = torch.randn(count, device=device, generator=generator).sigmoid()
        return (share * self.num_times).long().clamp(max=self.num_times - 1)

    draw_times = former_method("draw_times", "sample_times")

    def check_times(self, t: Tensor) -> None:
        """Raises ``ValueError`` for times that are no places in the table."""
        _check_whole(t, self.num_times)

    def sigma(self, t: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """How noisy these times are."""
        if t.device not in self._on_device:
            self._on_device[t.device] = self.sigmas.float().to(t.device)
        return self._on_device[t.device][t]

    def net_time(self, t: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Sigma times ``num_times``."""
        return self.sigma(t) * self.num_times

    def corrupt(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Data with the noise of its time."""
        sigma = self.sigma(t)[:, None]
        return sigma * noise + (1 - sigma) * x

    def losses(
        self, output: Float[Tensor, "N C2"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Mean squared error of the velocity over the channels."""
        return (output.float() - (noise - x)).square().mean(dim=-1)
