"""Losses of single rows: what heads have in common.

Shapes: N rows, D width.
"""

from collections.abc import Callable
from inspect import signature

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def check_rows(hidden: Tensor, target: Tensor, weight: Tensor | None, width: int | None = None) -> None:
    """Raises ``ValueError`` where target or weight do not have a row for each of ``hidden``, or the target another width."""
    rows = len(hidden)
    wanted = (rows,) if width is None else (rows, width)
    if target.shape != wanted:
        raise ValueError(f"target has shape {tuple(target.shape)}; accepted: {wanted}, one row per state")
    if weight is not None and weight.shape != (rows,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted: ({rows},), one factor per row")


def check_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` where values that were handed in have another shape."""
    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; accepted: {shape}")


def weighted(losses: Float[Tensor, " N"], weight: Float[Tensor, " N"] | None) -> Float[Tensor, " N"]:
    """Each row's loss times its weight, in float32."""
    return losses.float() if weight is None else losses.float() * weight.float()


def weighted_mean(losses: Float[Tensor, " N"], weight: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The mean of losses that were multiplied by ``weight`` already: their sum by that of the weights; 0 where these are all 0."""
    total = weight.float().sum()
    return losses.sum() / torch.where(total > 0, total, 1.0)


def loss_by(
    loss: Callable[..., Tensor], hidden: Float[Tensor, "N D"], target: Tensor, generator: Generator | None
) -> Float[Tensor, " N"]:
    """A head's loss of each row, with what is random in it from ``generator`` where the head takes one."""
    return loss(hidden, target, generator=generator) if "generator" in signature(loss).parameters else loss(hidden, target)
