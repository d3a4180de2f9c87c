"""Adaptive layer norm: a condition, such as a time step or a class, shifts and scales what a norm gives.

Shapes: N rows, C width of a condition, D width.
"""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift``."""
    return x * (1 + scale) + shift


def sinusoid(t: Num[Tensor, "*N"], dim: int, max_period: float = 10000.0) -> Float[Tensor, "*N D"]:
    """Cosines, then sines, of t at frequencies that fall geometrically from 1 to ``1 / max_period``; in float32."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[..., None] * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """A vector per time: sines and cosines through a small MLP.

    Args:
        dim: D.
        num_frequencies: sines and cosines together, even.

    Source: GLIDE, as DiT (arXiv 2212.09748) and most models after it have it.
    """

    def __init__(self, dim: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        first, second = nn.Linear(num_frequencies, dim), nn.Linear(dim, dim)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.02)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, t: Num[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Times, integer or not, to vectors."""
        return self.mlp(sinusoid(t, self.num_frequencies).to(next(self.mlp.parameters()).dtype))


class Modulation(nn.Sequential):
    """A condition to so many shifts, scales or gates: a linear map of its SiLU, zero at first.

    Args:
        condition_dim: width of the condition.
        dim: D, of each.
        count: how many.
    """

    def __init__(self, condition_dim: int, dim: int, count: int) -> None:
        project = nn.Linear(condition_dim, count * dim)
        nn.init.zeros_(project.weight)
        nn.init.zeros_(project.bias)
        super().__init__(nn.SiLU(), project)


class ModulatedLinear(nn.Module):
    """A linear map of states that a condition shifts and scales: the last layer of DiT and its kin, after the trunk's norm.

    Args:
        dim: D.
        condition_dim: C.
        out_dim: O.
    """

    def __init__(self, dim: int, condition_dim: int, out_dim: int) -> None:
        super().__init__()
        self.modulation = Modulation(condition_dim, dim, 2)
        self.linear = nn.Linear(dim, out_dim)

    def forward(self, states: Float[Tensor, "*N D"], condition: Float[Tensor, "*rows C"]) -> Float[Tensor, "*N O"]:
        """Outputs; there may be one condition for several states, with axes of one."""
        return self.linear(self.modulated(states, condition))

    def modulated(self, states: Float[Tensor, "*N D"], condition: Float[Tensor, "*rows C"]) -> Float[Tensor, "*N D"]:
        """What the linear map reads."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return modulate(states, shift, scale)
