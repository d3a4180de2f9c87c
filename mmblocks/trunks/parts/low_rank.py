"""A linear map with a low-rank one on top: for the rows of some experts, or for all of them with several that a gate mixes.

Shapes: N rows, I and O widths of a map's input and output, E experts, R rank.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from mmblocks.ops.routed_linear import RowGroups, routed_linear
from mmblocks.trunks.context import ByExpert


class ModalityLoRA(ByExpert):
    """A linear map, and for the rows of some groups ``alpha / rank`` times a low-rank map on top.

    The low-rank maps begin at zero. The rows of all other groups are what they would be without, bit for bit.

    Args:
        base: the map that all rows go through.
        dim, out_dim: I and O.
        experts: names of the groups.
        adapted: which of them have low-rank maps.
        rank: R.
        alpha: see above.
        dropout: on what the low-rank maps read, while training.
    """

    def __init__(
        self,
        base: nn.Module,
        dim: int,
        out_dim: int,
        *,
        experts: Sequence[str],
        adapted: Sequence[str],
        rank: int,
        alpha: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.base = base
        self.experts = tuple(experts)
        self.scale, self.dropout = alpha / rank, dropout
        self.narrow = nn.ModuleDict({name: nn.Linear(dim, rank, bias=False) for name in adapted})
        self.widen = nn.ModuleDict({name: nn.Linear(rank, out_dim, bias=False) for name in adapted})
        self.reset()

    def reset(self) -> None:
        """The low-rank maps as they begin."""
        for name in self.narrow:
            _begin(self.narrow[name], self.widen[name])

    def forward(self, x: Float[Tensor, "N I"], groups: RowGroups) -> Float[Tensor, "N O"]:
        """The map of sorted rows."""
        narrow = routed_linear(dropout(x, self.dropout, self.training), groups, self._weights(self.narrow))
        return _mapped(self.base, x, groups) + self.scale * routed_linear(narrow, groups, self._weights(self.widen))

    def _weights(self, maps: nn.ModuleDict) -> list[Tensor | None]:
        if not all(type(one) is nn.Linear for one in maps.values()):  # an adapter's work would be left out
            raise TypeError("the low-rank maps of a ModalityLoRA are no linear layers any more; accepted: no adapters on them")
        return [maps.get_parameter(f"{name}.weight") if name in maps else None for name in self.experts]


class GatedLoRA(ByExpert):
    """A linear map, a low-rank map for every row, and one for each expert that a learned gate mixes, row by row.

    Args:
        base: the map that all rows go through.
        dim, out_dim: I and O.
        num_experts: E, besides the shared one.
        rank: R of each.
        alpha: the low-rank maps count ``alpha / rank`` times.
    """

    def __init__(self, base: nn.Module, dim: int, out_dim: int, *, num_experts: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.gate = nn.Linear(dim, num_experts)
        # The experts' maps stand side by side, the shared one first: together they are one narrow product.
        self.narrow = nn.Linear(dim, (1 + num_experts) * rank, bias=False)
        self.widen = nn.Linear((1 + num_experts) * rank, out_dim, bias=False)
        self.reset()

    def reset(self) -> None:
        """The low-rank maps and their gate as they begin."""
        self.gate.reset_parameters()
        _begin(self.narrow, self.widen)

    def forward(self, x: Float[Tensor, "*N I"], groups: RowGroups | None) -> Float[Tensor, "*N O"]:
        """The map of rows in any order."""
        share = self.gate(x).softmax(dim=-1)
        weights = torch.cat([torch.ones_like(share[..., :1]), share], dim=-1)
        narrow = self.narrow(x).unflatten(-1, (weights.shape[-1], -1)) * weights[..., None]
        return _mapped(self.base, x, groups) + self.scale * self.widen(narrow.flatten(-2))


def _mapped(base: nn.Module, x: Tensor, groups: RowGroups | None) -> Tensor:
    found: Tensor = base(x, groups) if isinstance(base, ByExpert) else base(x)
    return found


def _begin(narrow: nn.Module, widen: nn.Module) -> None:
    """A low-rank map that adds nothing yet, and learns."""
    narrow.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    nn.init.zeros_(widen.get_parameter("weight"))
