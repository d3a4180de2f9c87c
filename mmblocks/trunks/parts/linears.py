"""The linear maps of layers: plain, with weights by expert, or with low-rank additions.

Shapes: N tokens, I and O widths of a map's input and output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.configurable import Description
from mmblocks.ops.routed_linear import RowGroups, routed_linear
from mmblocks.trunks.context import ByExpert
from mmblocks.trunks.parts.low_rank import GatedLoRA, ModalityLoRA

MAPS = ("query", "key", "value", "output", "gate", "up", "down")
"""A layer's linear maps."""


class Linear(Description):
    """Linear maps.

    Args:
        experts: names of experts with weights of their own; one name, or that of every expert of the trunk. Empty: a plain map.

    Examples:
        >>> from mmblocks.trunks import Attention, Linear
        >>> by_modality = Attention(num_heads=4, linear=Linear(experts=("text", "vision")))
        >>> by_modality.linear.build("query", 32, 32)
        RoutedLinear(
          (text): Linear(in_features=32, out_features=32, bias=False)
          (vision): Linear(in_features=32, out_features=32, bias=False)
        )
    """

    experts: tuple[str, ...] = ()

    def build(self, name: str, dim: int, out_dim: int, bias: bool = False) -> nn.Module:
        """The map of this name, (N, I) to (N, O)."""
        if self.experts:
            return RoutedLinear(dim, out_dim, experts=self.experts, bias=bias)
        return nn.Linear(dim, out_dim, bias=bias)


class LowRank(Linear):
    """Maps with a low-rank addition for the tokens of some experts only; all others pass as before.

    Args:
        experts: as for ``Linear``: whether the map itself differs by expert.
        names: every expert of the trunk.
        adapted: those whose tokens the additions act on.
        rank, alpha: of the additions, which count ``alpha / rank`` times.
        dropout: on what they read, while training.
        maps: which maps have them.

    Source: InternLM-XComposer2 (arXiv 2401.16420).

    Examples:
        >>> from mmblocks.trunks import LowRank
        >>> LowRank(rank=4, alpha=8.0, maps=("query", "value")).build("key", 32, 32)  # no addition to this one
        Linear(in_features=32, out_features=32, bias=False)
    """

    names: tuple[str, ...] = ("text", "vision")
    adapted: tuple[str, ...] = ("vision",)
    rank: int = 256
    alpha: float = 256.0
    dropout: float = 0.0
    maps: tuple[str, ...] = MAPS

    def check(self) -> None:
        """Refuses unknown experts or maps, and ranks below 1."""
        check_low_rank(self.rank, self.maps)
        if not self.adapted or not set(self.adapted) <= set(self.names):
            raise ValueError(f"adapted is {self.adapted}; accepted: some of the experts, {self.names}")

    def build(self, name: str, dim: int, out_dim: int, bias: bool = False) -> nn.Module:
        """The map of this name."""
        base = super().build(name, dim, out_dim, bias)
        if name not in self.maps:
            return base
        options: dict[str, Any] = {"experts": self.names, "adapted": self.adapted, "rank": self.rank, "alpha": self.alpha}
        return ModalityLoRA(base, dim, out_dim, **options, dropout=self.dropout)


class GatedLowRank(Linear):
    """Maps with a low-rank addition for all tokens, and several of which a learned gate takes a share each.

    Args:
        experts: as for ``Linear``: whether the map itself differs by expert.
        num_experts: additions that the gate mixes.
        rank, alpha: of each addition, which counts ``alpha / rank`` times.
        maps: which maps have them.

    Source: TextHarmony (arXiv 2407.16364). The gate is a softmax for each token, from what the map reads.

    Examples:
        >>> from mmblocks.trunks import GatedLowRank
        >>> GatedLowRank(num_experts=2, rank=4).build("query", 32, 32).gate  # a share for each addition, token by token
        Linear(in_features=32, out_features=2, bias=True)
    """

    num_experts: int = 2
    rank: int = 64
    alpha: float = 64.0
    maps: tuple[str, ...] = MAPS

    def check(self) -> None:
        """Refuses unknown maps, and ranks or numbers of experts below 1."""
        check_low_rank(self.rank, self.maps)
        if self.num_experts < 1:
            raise ValueError(f"num_experts is {self.num_experts}; accepted: 1 or more")

    def build(self, name: str, dim: int, out_dim: int, bias: bool = False) -> nn.Module:
        """The map of this name."""
        base = super().build(name, dim, out_dim, bias)
        if name not in self.maps:
            return base
        return GatedLoRA(base, dim, out_dim, num_experts=self.num_experts, rank=self.rank, alpha=self.alpha)


def check_low_rank(rank: int, maps: Sequence[str]) -> None:
    """Refuses low-rank additions that cannot be made.

    Raises:
        ValueError: a rank below 1, or maps that are not of ``MAPS``.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; accepted: 1 or more")
    if not maps or not set(maps) <= set(MAPS):
        raise ValueError(f"maps is {tuple(maps)}; accepted: some of {MAPS}")


class RoutedLinear(nn.ModuleDict, ByExpert):
    """A linear map for each expert by name; or one for all, if there is only one name.

    Args:
        dim, out_dim: widths of input and output.
        experts: whose weights there are, in the order of the groups.
        bias: whether the maps have biases.
    """

    def __init__(self, dim: int, out_dim: int, *, experts: Sequence[str], bias: bool = False) -> None:
        super().__init__({name: nn.Linear(dim, out_dim, bias=bias) for name in experts})

    def forward(self, x: Float[Tensor, "*N I"], groups: RowGroups | None) -> Float[Tensor, "*N O"]:
        """Each row by its group's map."""
        maps: list[Any] = list(self.values())
        return maps[0](x) if groups is None or len(maps) == 1 else group_by_group(x, groups, maps)


def group_by_group(x: Float[Tensor, "N I"], groups: RowGroups, maps: Sequence[Any]) -> Float[Tensor, "N O"]:
    """Sorted rows, each by its group's linear layer, or by the adapter that has taken its place."""
    if not all(type(one) is nn.Linear for one in maps):
        return _one_by_one(x, groups, maps)
    return routed_linear(x, groups, [one.weight for one in maps], [one.bias for one in maps])


def _one_by_one(x: Tensor, groups: RowGroups, maps: Sequence[Any]) -> Tensor:
    """Each group's rows through a module of its own; every row through each in a compiled graph, which does not know the sizes."""
    if groups.sizes is not None:
        return torch.cat([one(rows) for one, rows in zip(maps, x.split(groups.sizes), strict=True)])
    out = maps[0](x)
    for index, one in enumerate(maps[1:], start=1):
        out = torch.where((groups.group == index)[:, None], one(x), out)
    return out
