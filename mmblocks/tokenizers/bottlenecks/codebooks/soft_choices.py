"""Soft choices among codes that are written out for it: of bottlenecks that compute their codes, or sum them up.

Shapes: Q numbers a token, K codes of each, d width of a number's part of a code.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def soft_choice(x: Float[Tensor, "*N d"], codes: Float[Tensor, "K d"], temperature: float) -> Float[Tensor, "*N K"]:
    """The softmax of the negated squared distances to the codes over the temperature."""
    # What all codes share, the square of x, changes no softmax.
    return ((2 * x @ codes.T - codes.square().sum(dim=-1)) / temperature).softmax(dim=-1)


def soft_choices(
    parts: Sequence[Float[Tensor, "*N _"]], tables: Sequence[Float[Tensor, "K _"]], temperature: float
) -> Float[Tensor, "*Q K"]:
    """A choice for each number of a token: (*N, Q, K), or (*N, K) where there is one number.

    Args:
        parts: what is compared with each number's codes.
        tables: the codes of each number.
        temperature: see ``soft_choice``.

    Raises:
        ValueError: numbers of different sizes, whose weights have no common shape.
    """
    sizes = [len(table) for table in tables]
    if len(set(sizes)) > 1:
        raise ValueError(f"the numbers of a token choose among {sizes} codes; accepted: as many for each")
    weights = [soft_choice(part, table, temperature) for part, table in zip(parts, tables, strict=True)]
    return weights[0] if len(weights) == 1 else torch.stack(weights, dim=-2)


def mixtures(weights: Float[Tensor, "*Q K"], tables: Sequence[Float[Tensor, "K _"]]) -> Float[Tensor, "*N Qd"]:
    """The codes of each number mixed by the weights of ``soft_choices``, side by side.

    Raises:
        ValueError: weights of another shape.
    """
    wanted = (len(tables), len(tables[0])) if len(tables) > 1 else (len(tables[0]),)
    if tuple(weights.shape[-len(wanted) :]) != wanted:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; accepted: (..., {', '.join(map(str, wanted))})")
    parts = weights.unbind(dim=-2) if len(tables) > 1 else [weights]
    return torch.cat([part.float() @ table for part, table in zip(parts, tables, strict=True)], dim=-1)
