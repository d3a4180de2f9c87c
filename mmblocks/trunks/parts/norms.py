"""Norms of layers and of heads.

Shapes: N tokens (on one or more axes), D width, H heads, E width of a head.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from mmblocks.configurable import Description
from mmblocks.ops.routed_linear import RowGroups
from mmblocks.trunks.context import ByExpert


class Norm(Description):
    """A norm over the last axis.

    Args:
        kind: "rms", which divides by the root mean square (arXiv 1910.07467), or "layer", which first takes the mean away.
        eps: epsilon.
        weight: whether there is a scale for each channel.
        bias: whether there is a shift for each channel; of "layer" alone.
        one_plus: whether the scale is 1 + weight, with the product in float32 (Gemma); of "rms" alone.
        experts: names of experts with weights of their own; one name, or that of every expert of the trunk. Of "rms" alone.

    Examples:
        >>> from mmblocks.trunks import Norm
        >>> Norm(eps=1e-6).build(8)
        RMSNorm((8,), eps=1e-06, elementwise_affine=True)
        >>> Norm(kind="layer").build(8).bias is None, Norm(kind="layer", bias=True).build(8).bias is None
        (True, False)
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = False
    one_plus: bool = False
    experts: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses options that the kind does not have."""
        if self.kind not in ("rms", "layer"):
            raise ValueError(f"kind is {self.kind!r}; accepted: 'rms', 'layer'")
        if self.kind == "layer" and (self.one_plus or self.experts):
            raise ValueError("one_plus and experts are of kind 'rms' alone; accepted with 'layer': eps, weight, bias")
        if (self.kind == "rms" and self.bias) or (self.bias and not self.weight):
            raise ValueError("bias is True; accepted with kind 'layer' and weight=True")
        if self.one_plus and (self.experts or not self.weight):
            raise ValueError("one_plus is True; accepted with weight=True and without experts")

    def build(self, dim: int, heads: int | None = None) -> nn.Module:
        """A norm of ``dim`` channels; with ``heads`` each head has weights of its own."""
        if heads is not None:
            return PerHeadNorm(heads, dim, self)
        if self.kind == "layer":
            return nn.LayerNorm(dim, eps=self.eps, elementwise_affine=self.weight, bias=self.bias)
        if self.experts:
            return RoutedNorm(dim, eps=self.eps, experts=self.experts)
        if self.one_plus:
            return OnePlusRMSNorm(dim, eps=self.eps)
        return nn.RMSNorm(dim, eps=self.eps, elementwise_affine=self.weight)


class OnePlusRMSNorm(nn.Module):
    """RMS norm scaled by 1 + weight, all of it in float32. Source: Gemma (arXiv 2403.08295)."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Over the last axis."""
        return rms_norm(x.float(), x.shape[-1:], 1 + self.weight.float(), self.eps).to(x.dtype)


class PerHeadNorm(nn.Module):
    """A norm of every head by itself, each with its own scale and shift (Chameleon, Cohere).

    Args:
        num_heads, head_dim: H and E.
        norm: which one.
    """

    def __init__(self, num_heads: int, head_dim: int, norm: Norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim)) if norm.bias else None
        self.kind, self.eps = norm.kind, norm.eps

    def forward(self, x: Float[Tensor, "*N H E"]) -> Float[Tensor, "*N H E"]:
        """Over the last axis."""
        normed = layer_norm(x, x.shape[-1:], eps=self.eps) if self.kind == "layer" else rms_norm(x, x.shape[-1:], eps=self.eps)
        scaled = normed * self.weight
        return scaled if self.bias is None else scaled + self.bias


class RoutedNorm(nn.ModuleDict, ByExpert):
    """An RMS norm for each expert by name; or one for all, if there is only one name.

    Args:
        dim: width of the last axis.
        eps: of the norms.
        experts: whose weights there are, in the order of the groups.
    """

    def __init__(self, dim: int, *, eps: float, experts: Sequence[str]) -> None:
        super().__init__({name: nn.RMSNorm(dim, eps=eps) for name in experts})
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"], groups: RowGroups | None) -> Float[Tensor, "*N D"]:
        """Each row by its group's norm."""
        norms: list[Any] = list(self.values())  # a ModuleDict does not know of which class its modules are
        if groups is None or len(norms) == 1:
            return norms[0](x)
        if groups.sizes is not None:
            return torch.cat([norm(rows) for norm, rows in zip(norms, x.split(groups.sizes), strict=True)])
        weights = torch.stack([norm.weight for norm in norms])[groups.group]
        between = (1,) * (x.ndim - 2)
        return rms_norm(x, x.shape[-1:], None, self.eps) * weights.view(len(x), *between, x.shape[-1])
