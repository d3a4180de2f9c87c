"""Ways from the same inputs to the same numbers, as a comparison that says how far each is from exact arithmetic."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check

Way = Callable[..., Any]
"""A function of the inputs; a comparison's ways are functions to the same numbers."""

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""What a result may be off by, relative to its size, beyond twice what plain PyTorch is off by."""


def gaussian(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The same numbers in every process."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def result(way: Way, values: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What a way gives, and the gradients of the values that want one."""
    wanted = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
    with torch.set_grad_enabled(bool(wanted)):
        out = way(*values)
    return (out.detach(), *torch.autograd.grad(out, wanted, torch.ones_like(out))) if wanted else (out,)


def widened(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of floating numbers in another dtype; anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def off(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest of the results' differences, each relative to the size of what is wanted."""
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).float().norm() / other.float().norm().clamp(min=1e-30)) for one, other in pairs)


def compare(
    title: str,
    inputs: Callable[[], tuple[Any, ...]],
    ways: Mapping[str, Way],
    *,
    exact: Way,
    wide: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    missing: tuple[str, ...] = (),
    **options: Any,
) -> Comparison:
    """Ways from the same inputs to the same numbers, beside ``exact`` of the inputs in the dtype ``wide``."""

    def prepared(way: Way) -> Step:
        return partial(result, way, inputs())

    def difference() -> str:
        values = inputs()
        wanted = result(exact, tuple(widened(value, wide) for value in values))
        errors = {side: off(result(way, values), wanted) for side, way in ways.items()}
        ours, plain = list(errors.values())[:2]
        check(ours <= 2 * plain + ROUNDING[dtype], f"{title}: ours is off by {ours:.1e}, plain PyTorch by {plain:.1e}")
        told = [f"{side} is off by {error:.0e}" for side, error in errors.items()]
        return ", ".join([*told, *(f"{name} is not installed" for name in missing)])

    return Comparison(title, {side: partial(prepared, way) for side, way in ways.items()}, difference, **options)
