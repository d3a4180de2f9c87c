"""Tokens in random order: orders, a cosine of counts while sampling, a random share while training, as in MAR.

Shapes: B rows, L tokens.
"""

import math

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor


def sample_orders(rows: int, num_tokens: int, device: torch.device, generator: Generator | None = None) -> Int[Tensor, "B L"]:
    """A random order of the tokens for each row."""
    return torch.rand(rows, num_tokens, generator=generator, device=device).argsort(dim=1)


def mask_of(orders: Int[Tensor, "B L"], count: int) -> Bool[Tensor, "B L"]:
    """True at the first ``count`` tokens of each row's order."""
    nothing = torch.zeros_like(orders, dtype=torch.bool)
    return nothing.scatter(1, orders[:, :count], value=True)


def mask_counts(num_tokens: int, num_steps: int) -> list[int]:
    """How many tokens are still masked after each step: L times a cosine, at least one fewer each time, 0 at last.

    Raises:
        ValueError: fewer than one step, or more than tokens.
    """
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(f"num_steps is {num_steps}; accepted: 1 to {num_tokens}, the number of tokens")
    counts, left = [], num_tokens
    for step in range(1, num_steps):
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * step / num_steps))
        left = max(1, min(left - 1, wanted))
        counts.append(left)
    return [*counts, 0]


def sample_share(min_ratio: float, uniform: float) -> float:
    """The share that is masked: of the lower half of a normal around 1 with deviation 0.25, cut off at ``min_ratio``."""
    lowest = torch.special.ndtr(torch.tensor((min_ratio - 1) / 0.25, dtype=torch.float64))
    return 1 + 0.25 * float(torch.special.ndtri(lowest + uniform * (0.5 - lowest)))


def sample_mask(
    orders: Int[Tensor, "B L"], min_ratio: float, *, uniform: float | None = None, generator: Generator | None = None
) -> Bool[Tensor, "B L"]:
    """A mask for training: one share for all rows; see ``sample_share``.

    Args:
        orders: what is masked first.
        min_ratio: the smallest share.
        uniform: the number in [0, 1] that the share grows with, in place of a random one.
        generator: its source.
    """
    if uniform is None:
        uniform = float(torch.rand((), generator=generator, device=orders.device))
    return mask_of(orders, math.ceil(orders.shape[1] * sample_share(min_ratio, uniform)))
