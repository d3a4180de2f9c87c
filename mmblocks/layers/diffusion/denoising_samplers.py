"""From noise to data in a number of steps, whatever network predicts.

A sampler says which times it asks the network at, and integrates over them. It has no parameters.

Shapes: S steps, N rows, C channels.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from collections.abc import Generator as Coroutine
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.learned_variance import LearnedVariancePath, Posterior
from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.layers.diffusion.noise_schedules import Spacing, spaced_steps
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.support.deprecation import former_keywords, former_method

Predict = Callable[[Tensor, int], Tensor]
"""(noised rows, index of the step) -> the network's guided output."""


Steps = Coroutine[tuple[Tensor, int], Tensor, Tensor]
"""Yields (rows as the network reads them, index of the step), is sent its guided output, and returns the data."""


def run_steps(steps: Steps, predict: Predict) -> Tensor:
    """Lets a function predict in each step."""
    try:
        x, index = next(steps)
        while True:
            x, index = steps.send(predict(x, index))
    except StopIteration as stop:
        data: Tensor = stop.value
        return data


@runtime_checkable
class SteppedSampler(Protocol):
    """A sampler that a head of whole spans can use: one that hands each step out."""

    def times(self, path: Any) -> Tensor:  # of the kind that the sampler is for
        """As of ``TokenSampler``."""
        ...

    def stepwise(
        self,
        x: Float[Tensor, "*N C"],
        path: Any,  # as above
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Steps:
        """Noise to data, as a coroutine."""
        ...


@runtime_checkable
class TokenSampler(Protocol):
    """What a denoising head asks of a sampler."""

    # Any: a path of the kind that the sampler is for.
    def times(self, path: Any) -> Tensor:
        """(S,): what the network is told in each step, in the order of the steps."""
        ...

    def sample(
        self,
        predict: Predict,
        x: Float[Tensor, "*N C"],
        path: Any,  # as above
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "*N C"]:
        """Noise to data. The rows after each step are appended to ``trajectory``."""
        ...


class AncestralSampler(Block):
    """Samples each step from the Gaussian the network predicts, over some of the training's times.

    Args:
        steps: which times; see ``noise_schedules.Spacing``.

    Source: improved DDPM (arXiv 2102.09672), as MAR uses it.
    """

    def __init__(self, *, steps: Spacing = 100) -> None:
        super().__init__()
        self.steps = steps
        self._found: tuple[tuple[Any, ...], Posterior] | None = None

    def posterior(self, path: DiffusionPath) -> Posterior:
        """Factors of the steps over the chosen times, ascending."""
        key = (path.num_times, path.schedule, path.beta_start, path.beta_end, path.zero_terminal_snr)
        if self._found is None or self._found[0] != key:
            times = spaced_steps(path.num_times, self.steps)
            self._found = (key, Posterior.of(path.alphas_cumprod, times))
        return self._found[1]

    def times(self, path: DiffusionPath) -> Tensor:
        """Indices of times, from noise to data."""
        return self.posterior(path).times.flip(0)

    @former_keywords(taps="trajectory")
    def sample(
        self,
        predict: Predict,
        x: Float[Tensor, "*N C"],
        path: DiffusionPath,
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "*N C"]:
        """Noise to data; ``temperature`` scales the noise of each step. The last step's noise is read but not added.

        Raises:
            ValueError: a path that does not predict noise, or ``step_noise`` of another shape.
        """
        steps = self.stepwise(x, path, temperature=temperature, step_noise=step_noise, generator=generator, trajectory=trajectory)
        return run_steps(steps, predict)

    def stepwise(
        self,
        x: Float[Tensor, "*N C"],
        path: DiffusionPath,
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Steps:
        """``sample`` as a coroutine."""
        if path.prediction != "noise":
            raise ValueError(f"the path predicts {path.prediction!r}; ancestral sampling accepts 'noise'")
        count = len(self.times(path))
        if step_noise is not None:
            check_shape("step_noise", step_noise, (count, *x.shape))
        for step in range(count):
            if step_noise is not None:
                noise = step_noise[step]
            else:
                noise = torch.empty_like(x).normal_(generator=generator) if step + 1 < count else x
            output = yield x, step
            x, _ = self.step(path, x, output, count - 1 - step, noise, temperature)
            if trajectory is not None:
                trajectory.append(x)
        return x

    walk = former_method("walk", "sample")

    def step(
        self,
        path: DiffusionPath,
        x: Float[Tensor, "*N C"],
        output: Float[Tensor, "*N C2"],
        place: int,
        noise: Float[Tensor, "*N C"],
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "*N C"], Float[Tensor, "*N C"]]:
        """The rows one step cleaner, and the data as the network sees it now. ``place`` counts the times from the clean end."""
        data, noised, clean, amount, small, large = (float(column[place]) for column in self.posterior(path)[2:])
        output = output.float()
        channels = x.shape[-1]
        found = clean * x - amount * output[..., :channels]
        mean = data * found + noised * x
        if place == 0:
            return mean, found
        if isinstance(path, LearnedVariancePath):
            logvar = small + (output[..., channels:] + 1) * ((large - small) / 2)
            return torch.addcmul(mean, (0.5 * logvar).exp(), noise, value=temperature), found
        return mean + temperature * float(torch.tensor(0.5 * small).exp()) * noise, found


@runtime_checkable
class _Scaled(Protocol):
    """A scheduler that begins with noise of its own size."""

    init_noise_sigma: float | Tensor


@runtime_checkable
class _Scaling(Protocol):
    """A scheduler that scales what the network reads."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...


class DiffusersSampler(Block):
    """Any scheduler of diffusers that asks the network once a step.

    Args:
        scheduler: name of the class, such as "DDIMScheduler" or "FlowMatchEulerDiscreteScheduler".
        options: its arguments.
        num_steps: S.
        even: whether the noise of a flow falls evenly, from 1 to 1 / S before any shift, as the pipelines of FLUX and Lumina have
            it; otherwise as the scheduler has it.
        mu: how far a scheduler with ``use_dynamic_shifting`` shifts its times; see ``for_tokens``.

    Raises:
        ValueError: diffusers has no such class.

    Examples:
        >>> from mmblocks.layers import DiffusersSampler
        >>> sampler = DiffusersSampler(scheduler="DDIMScheduler", num_steps=4)
        >>> sampler.times(None).tolist()
        [750, 500, 250, 0]
        >>> config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "_diffusers_version": "0.36.0"}
        >>> DiffusersSampler.from_published(config, num_steps=4).options
        {'beta_schedule': 'scaled_linear'}
    """

    def __init__(
        self,
        *,
        scheduler: str,
        options: dict[str, Any] | None = None,
        num_steps: int = 50,
        even: bool = False,
        mu: float | None = None,
    ) -> None:
        super().__init__()
        self.scheduler, self.options, self.num_steps = scheduler, options or {}, num_steps
        self.even, self.mu = even, mu
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; accepted: 1 or more")

    @classmethod
    def from_published(cls, config: Mapping[str, Any], num_steps: int = 50, *, even: bool = False) -> Self:
        """From a pipeline's scheduler_config.json, without the entries that the class of that name does not know.

        An infinity that is the class's default, such as a bound that bounds nothing, is left out too: it cannot be saved.
        """
        known = inspect.signature(_scheduler(config["_class_name"]).__init__).parameters
        default = {name for name, value in config.items() if name in known and value == known[name].default}
        infinite = {name for name, value in config.items() if isinstance(value, float) and math.isinf(value)}
        options = {name: value for name, value in config.items() if name in known and name not in infinite & default}
        return cls(scheduler=config["_class_name"], options=options, num_steps=num_steps, even=even)

    @property
    def settings(self) -> dict[str, Any]:
        """All of the scheduler's arguments, defaults included."""
        return dict(_scheduler(self.scheduler)(**self.options).config)

    def for_tokens(self, count: int) -> "DiffusersSampler":
        """The sampler for an image of so many tokens: another one where the scheduler shifts its times by their number.

        Source: FLUX, as diffusers has it: ``mu`` is linear in the number.
        """
        config = self.settings
        if not config.get("use_dynamic_shifting") or self.mu is not None:
            return self
        first, last = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (last - first)
        mu = config["base_shift"] + slope * (count - first)
        return type(self)(**{**self.config, "mu": mu})

    def times(self, path: object) -> Tensor:
        """What the scheduler calls timesteps."""
        timesteps: Tensor = self._prepared().timesteps
        return timesteps.cpu()

    @former_keywords(taps="trajectory")
    def sample(
        self,
        predict: Predict,
        x: Float[Tensor, "*N C"],
        path: object,
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "*N C"]:
        """Noise to data; ``temperature`` scales the noise that is begun with.

        Raises:
            ValueError: ``step_noise``, which these schedulers sample themselves, from the generator.
        """
        steps = self.stepwise(x, path, temperature=temperature, step_noise=step_noise, generator=generator, trajectory=trajectory)
        return run_steps(steps, predict)

    def stepwise(
        self,
        x: Float[Tensor, "*N C"],
        path: object,
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Steps:
        """``sample`` as a coroutine."""
        if step_noise is not None:
            raise ValueError("step_noise was given; accepted: None, since diffusers' schedulers sample their own")
        steps = scheduler_steps(self._prepared(), x, temperature=temperature, generator=generator, trajectory=trajectory)
        return (yield from steps)

    walk = former_method("walk", "sample")

    def _prepared(self) -> Any:
        scheduler = _scheduler(self.scheduler)(**self.options)
        timing: dict[str, Any] = {} if self.mu is None else {"mu": self.mu}
        if self.even:
            timing["sigmas"] = np.linspace(1.0, 1 / self.num_steps, self.num_steps)
        scheduler.set_timesteps(self.num_steps, **timing)
        return scheduler


class GivenScheduler:
    """A scheduler of diffusers that is there already, as a sampler.

    Args:
        scheduler: the scheduler, whose state changes.
        num_steps: S.
    """

    def __init__(self, scheduler: Any, num_steps: int) -> None:  # of diffusers, of which type checkers see little
        self.scheduler, self.num_steps = scheduler, num_steps

    def times(self, path: object) -> Tensor:
        """What the scheduler calls timesteps."""
        self.scheduler.set_timesteps(self.num_steps)
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def stepwise(
        self,
        x: Float[Tensor, "*N C"],
        path: object,
        *,
        temperature: float = 1.0,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Steps:
        """Noise to data, as a coroutine."""
        self.scheduler.set_timesteps(self.num_steps)
        return scheduler_steps(self.scheduler, x, temperature=temperature, generator=generator, trajectory=trajectory)


def scheduler_steps(
    scheduler: Any,  # of diffusers, of which type checkers see little
    x: Float[Tensor, "*N C"],
    *,
    temperature: float = 1.0,
    generator: Generator | None = None,
    trajectory: list[Tensor] | None = None,
) -> Steps:
    """Noise to data by a scheduler whose steps are set, as a coroutine."""
    takes_generator = generator is not None and "generator" in scheduler.step.__annotations__
    keywords = {"generator": generator} if takes_generator else {}
    x = x * (temperature * float(scheduler.init_noise_sigma if isinstance(scheduler, _Scaled) else 1.0))
    for step, time in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, time) if isinstance(scheduler, _Scaling) else x
        output = yield scaled, step
        x = scheduler.step(output.float(), time, x, return_dict=False, **keywords)[0]
        if trajectory is not None:
            trajectory.append(x)
    return x


def _scheduler(name: str) -> Any:
    """The class of that name. Nothing else of diffusers can be asked for."""
    import diffusers  # here, since importing it takes a while

    # The name may come from a file, and be any.
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None:
        raise ValueError(f"scheduler is {name!r}; accepted: the name of a scheduler of diffusers")
    return cls
