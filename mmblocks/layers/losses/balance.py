"""How the losses of several heads become one, as data: weights that may change over training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

Weight = float | Sequence[tuple[int, float]]
"""A number, or (step, number) points with straight lines between them."""


@dataclass(frozen=True)
class LossBalance:
    """The sum of losses, each times its weight at a step of training.

    Args:
        weights: by head name, a number, or points (step, number) in rising order: before the first and after the last point the
            weight stays. Every head that gives a loss must be named.

    Raises:
        ValueError: a weight that is negative or not finite, or points that do not rise.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import LossBalance
        >>> balance = LossBalance({"text": 1.0, "image": [(0, 1.0), (1000, 5.0)]})  # flow counts more and more
        >>> balance.at("image", 250)
        2.0
        >>> balance({"text": torch.tensor(3.0), "image": torch.tensor(0.5)}, step=2000).item()
        5.5
    """

    weights: Mapping[str, Weight]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            points = [(0, weight)] if isinstance(weight, int | float) else list(weight)
            rising = all(a[0] < b[0] for a, b in pairwise(points))
            if not points or not rising or not all(0 <= value < math.inf for _, value in points):
                accepted = "a finite number of 0 or more, or (step, number) points with rising steps"
                raise ValueError(f"weights[{name!r}] is {weight}; accepted: {accepted}")

    def at(self, name: str, step: int) -> float:
        """The weight of a head at a step.

        Raises:
            ValueError: a head without a weight.
        """
        if name not in self.weights:
            raise ValueError(f"head {name!r} has no weight; accepted: {list(self.weights)}")
        weight = self.weights[name]
        if isinstance(weight, int | float):
            return float(weight)
        points = list(weight)
        if step <= points[0][0]:
            return float(points[0][1])
        for (first, low), (last, high) in pairwise(points):
            if step <= last:
                return low + (high - low) * (step - first) / (last - first)
        return float(points[-1][1])

    def __call__(self, losses: Mapping[str, Float[Tensor, ""]], step: int = 0) -> Float[Tensor, ""]:
        """One loss to learn by.

        Raises:
            ValueError: no losses, or a head without a weight.
        """
        if not losses:
            raise ValueError("losses is empty; accepted: at least one, such as model(batch).losses has")
        parts = [self.at(name, step) * loss for name, loss in losses.items()]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total
