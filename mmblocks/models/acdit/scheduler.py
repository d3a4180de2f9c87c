"""The schedulers of diffusers that ACDiT samples by."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class _Step(Protocol):
    """What a scheduler gives."""

    prev_sample: Tensor


@runtime_checkable
class Scheduler(Protocol):
    """A scheduler of diffusers for predicted noise."""

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, /, *, device: torch.device) -> None:
        """Makes ``timesteps``."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor, /) -> Tensor:
        """What the network reads."""
        ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, /) -> _Step:
        """One step to the data."""
        ...


def published_scheduler() -> Scheduler:
    """DPM-Solver++ over the times of DDIM."""
    import diffusers  # here, since importing it takes seconds

    library: Any = diffusers  # of which type checkers see little
    found: Scheduler = library.DPMSolverMultistepScheduler.from_config(library.DDIMScheduler().config)
    return found
