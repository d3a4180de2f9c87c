"""Transformer layers in which groups of tokens, such as those of one modality, have weights of their own under one attention.

Tokens pass through a layer sorted by group, so that each group is one run of rows; attention alone sees them in reading order.

Shapes: B batch, L new tokens, N = B * L tokens sorted by group, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, rms_norm, silu

from mmblocks.layers.attention.attend import Prepared, attend
from mmblocks.ops.routed_linear import RowGroups, routed_linear
from mmblocks.sequence.positions import RotaryTable, rotate_half_split
from mmblocks.trunks.caches.kv_cache import KVCache


class RoutedLinear(nn.ModuleDict):
    """A linear map for each expert by name; or one for all, if there is only one name.

    Args:
        dim, out_dim: widths of input and output.
        experts: whose weights there are, in the order of the groups.
        bias: whether the maps have biases.
    """

    def __init__(self, dim: int, out_dim: int, *, experts: Sequence[str], bias: bool = False) -> None:
        super().__init__({name: nn.Linear(dim, out_dim, bias=bias) for name in experts})

    def forward(self, x: Float[Tensor, "N _"], groups: RowGroups) -> Float[Tensor, "N _"]:
        """Each row by its group's map."""
        maps: list[Any] = list(self.values())
        if len(maps) == 1:
            return maps[0](x)
        if not all(type(one) is nn.Linear for one in maps):  # adapters stand around them
            return _one_by_one(x, groups, maps)
        return routed_linear(x, groups, [one.weight for one in maps], [one.bias for one in maps])


def _one_by_one(x: Tensor, groups: RowGroups, maps: list[Any]) -> Tensor:
    """Each group's rows through a module of its own; every row through each in a compiled graph, which does not know the sizes."""
    if groups.sizes is not None:
        return torch.cat([one(rows) for one, rows in zip(maps, x.split(groups.sizes), strict=True)])
    out = maps[0](x)
    for number, one in enumerate(maps[1:], start=1):
        out = torch.where((groups.group == number)[:, None], one(x), out)
    return out


class RoutedNorm(nn.ModuleDict):
    """An RMS norm for each expert by name; or one for all, if there is only one name.

    Args:
        dim: width of the last axis.
        eps: of the norms.
        experts: whose weights there are, in the order of the groups.
    """

    def __init__(self, dim: int, *, eps: float, experts: Sequence[str]) -> None:
        super().__init__({name: nn.RMSNorm(dim, eps=eps) for name in experts})
        self.eps = eps

    def forward(self, x: Float[Tensor, "N *H D"], groups: RowGroups) -> Float[Tensor, "N *H D"]:
        """Each row by its group's norm."""
        norms: list[Any] = list(self.values())
        if len(norms) == 1:
            return norms[0](x)
        if groups.sizes is not None:
            return torch.cat([norm(rows) for norm, rows in zip(norms, x.split(groups.sizes), strict=True)])
        weights = torch.stack([norm.weight for norm in norms])[groups.group]
        between = (1,) * (x.ndim - 2)
        return rms_norm(x, x.shape[-1:], None, self.eps) * weights.view(len(x), *between, x.shape[-1])


class RoutedAttention(nn.Module):
    """Grouped-query self-attention of all tokens together, whose projections may differ by group.

    Args:
        query, key, value, output: the projections, of rows and their groups.
        query_norm, key_norm: the same for heads, or None for none.
        head_dim: width of a head.
    """

    def __init__(
        self,
        *,
        query: nn.Module,
        key: nn.Module,
        value: nn.Module,
        output: nn.Module,
        query_norm: nn.Module | None,
        key_norm: nn.Module | None,
        head_dim: int,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query, self.key, self.value, self.output = query, key, value, output
        self.query_norm, self.key_norm = query_norm, key_norm

    def forward(
        self, x: Float[Tensor, "N D"], rotary: RotaryTable, mask: Prepared, groups: RowGroups, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "N D"]:
        """Attends to the tokens themselves and, with a cache, to those before."""
        length = rotary.cos.shape[1]
        query = rotate_half_split(self._heads(self.query, self.query_norm, x, groups, length), rotary)
        key = rotate_half_split(self._heads(self.key, self.key_norm, x, groups, length), rotary)
        value = self._heads(self.value, None, x, groups, length)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        attended = attend(query, key, value, mask)
        return self.output(groups.sort(rearrange(attended, "b h l d -> (b l) (h d)")), groups)

    def _heads(self, project: nn.Module, norm: nn.Module | None, x: Tensor, groups: RowGroups, length: int) -> Tensor:
        """Projected, normed, and back in reading order, heads apart."""
        heads = rearrange(project(x, groups), "n (h d) -> n h d", d=self.head_dim)
        if norm is not None:
            heads = norm(heads, groups)
        return rearrange(groups.restore(heads), "(b l) h d -> b h l d", l=length)


class RoutedSwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, with projections that may differ by group."""

    def __init__(self, *, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: Float[Tensor, "N D"], groups: RowGroups) -> Float[Tensor, "N D"]:
        """Works on sorted rows."""
        return self.down(silu(self.gate(x, groups)) * self.up(x, groups), groups)


class RoutedLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to what comes in; every part is given the groups."""

    def __init__(
        self, *, attention_norm: nn.Module, attention: RoutedAttention, mlp_norm: nn.Module, mlp: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "N D"], rotary: RotaryTable, mask: Prepared, groups: RowGroups, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "N D"]:
        """One layer."""
        attended = self.attention(self.attention_norm(x, groups), rotary, mask, groups, cache, layer)
        x = x + dropout(attended, self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x, groups), groups), self.dropout, self.training)
