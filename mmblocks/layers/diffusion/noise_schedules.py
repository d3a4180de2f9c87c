"""How much noise a step of a diffusion has, and which of the training's steps a sampler takes.

Shapes: T steps of the training, S steps of a sampler.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

Schedule = Literal["cosine", "linear", "scaled_linear"]

Spacing = int | str | Sequence[int]
"""Which steps a sampler takes: a count; counts of equal sections of the training, from the clean end on; or the string that
MAR's configs have: "100", "10,15,20", "ddim25" (one fixed whole stride), or "" for all."""


def betas_of(schedule: Schedule, num_steps: int, start: float = 1e-4, stop: float = 0.02) -> Float64[Tensor, " T"]:
    """Variance that each step adds, from the clean end on, on the CPU.

    Args:
        schedule: "cosine" (arXiv 2102.09672), "linear" (arXiv 2006.11239, stretched for other counts than 1000), or
            "scaled_linear", linear in the square root (arXiv 2112.10752).
        num_steps: T.
        start: of the two linear ones.
        stop: likewise.

    Raises:
        ValueError: for another name.
    """
    if schedule == "cosine":
        angle = (torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps + 0.008) / 1.008 * math.pi / 2
        kept = angle.cos().square()
        return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    if schedule == "linear":
        stretch = 1000 / num_steps
        return torch.linspace(stretch * start, stretch * stop, num_steps, dtype=torch.float64, device="cpu")
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, stop**0.5, num_steps, dtype=torch.float64, device="cpu").square()
    raise ValueError(f"schedule is {schedule!r}; accepted: 'cosine', 'linear', 'scaled_linear'")


def zero_terminal_snr(alphas_cumprod: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """Shifts and stretches the kept amplitude so that the last step is pure noise and the first stays as it is.

    Source: arXiv 2305.08891.
    """
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def spaced_steps(num_steps: int, spacing: Spacing) -> Int[Tensor, " S"]:
    """The training's steps, ascending, that a sampler takes.

    Each section is sampled evenly with both ends; places between two steps go to the nearer, halves to the even one.

    Raises:
        ValueError: more steps than there are, none, or a stride that does not exist.
    """
    if isinstance(spacing, str) and spacing.startswith("ddim"):
        wanted = int(spacing.removeprefix("ddim"))
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == wanted:
                return torch.arange(0, num_steps, stride, device="cpu")
        raise ValueError(f"spacing is {spacing!r}; no whole stride takes {wanted} of {num_steps} steps")
    sections = _sections(num_steps, spacing)
    steps: list[int] = []
    first = 0
    for index, count in enumerate(sections):
        size = num_steps // len(sections) + (index < num_steps % len(sections))
        if not 1 <= count <= size:
            raise ValueError(f"spacing is {spacing!r}; section {index} has {size} steps, accepted: 1 to {size} of them")
        gap = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            steps.append(first + round(place))
            place += gap
        first += size
    return torch.tensor(steps, device="cpu")


def _sections(num_steps: int, spacing: Spacing) -> list[int]:
    if isinstance(spacing, str):
        return [int(count) for count in spacing.split(",")] if spacing else [num_steps]
    return [spacing] if isinstance(spacing, int) else list(spacing)
