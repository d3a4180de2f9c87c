"""VAR's attention: queries and keys of length one, with a learned sharpness for each head.

Shapes: N tokens (on one or more axes), H heads, D width of a head.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmblocks.trunks.parts.attention import Attention, SelfAttention
from mmblocks.trunks.parts.part import Site

LARGEST_SCALE = math.log(100)


class CosineAttention(Attention):
    """Attention whose scores are cosines, times a sharpness that each head learns.

    Args: those of ``Attention``; ``scale`` multiplies the sharpness, and is 1 unless given. ``qk_norm`` has no place here.

    Source: Swin Transformer V2 (arXiv 2111.09883), as VAR (arXiv 2404.02905) has it.
    """

    scale: float | None = 1.0

    def check(self) -> None:
        """Refuses another norm of queries and keys."""
        super().check()
        if self.qk_norm is not None:
            raise ValueError(f"qk_norm is {self.qk_norm}; accepted by CosineAttention: None")

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return CosineSelfAttention(self, site.dim)


class CosineSelfAttention(SelfAttention):
    """What ``CosineAttention`` describes."""

    def __init__(self, parts: CosineAttention, dim: int) -> None:
        super().__init__(parts, dim)
        self.query_norm, self.key_norm = Sharpness(parts.num_heads), UnitLength()


class UnitLength(nn.Module):
    """Heads of length one."""

    def forward(self, x: Float[Tensor, "*N H D"]) -> Float[Tensor, "*N H D"]:
        """Over the last axis."""
        return normalize(x, dim=-1)


class Sharpness(UnitLength):
    """Heads of a learned length each.

    Args:
        num_heads: H.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0)))  # in the shape that files have

    def forward(self, x: Float[Tensor, "*N H D"]) -> Float[Tensor, "*N H D"]:
        """Over the last axis."""
        return super().forward(x) * self.log_scale[..., 0].clamp(max=LARGEST_SCALE).exp()
