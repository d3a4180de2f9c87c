"""Modulated layers: what the branches of a layer read and give is shifted, scaled and gated by a condition of each token.

Shapes: M conditions, C their width, B rows, L new tokens, N tokens (on one or more axes), D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from mmblocks.configurable import Description
from mmblocks.layers.diffusion.adaln import Modulation, modulate
from mmblocks.ops.routed_linear import RowGroups
from mmblocks.sequence.spans import Conditions
from mmblocks.support.checks import is_readable


class AdaLN(Description):
    """How a layer is modulated: what a branch reads becomes ``x * (1 + scale) + shift``, and what it gives is times ``gate``.

    All three follow from the token's condition: a linear map of its SiLU, zero at first. Tokens without one are left as they are. A
    layer's two branches have numbers of their own; parallel ones share theirs.

    Args:
        condition_dim: C; the trunk's width if None.
        shared: whether one map serves all layers of the trunk, to which each adds numbers of its own (PixArt, VAR), rather than
            each layer having a map of its own (DiT, ACDiT).

    Source: DiT (arXiv 2212.09748); PixArt-alpha (arXiv 2310.00426) for the shared map.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.sequence import Conditions
        >>> from mmblocks.trunks import AdaLN, Attention, GatedMLP, Layer
        >>> layer = Layer(mixer=Attention(num_heads=4), feed_forward=GatedMLP(hidden_dim=48), modulation=AdaLN(condition_dim=8))
        >>> trunk = Decoder(dim=32, num_layers=1, layers=layer)
        >>> embeds, table = torch.randn(1, 3, 32), TokenTable.text(1, 3)
        >>> conditions = Conditions(torch.randn(1, 8), torch.tensor([[-1, 0, 0]]))
        >>> changed = trunk(embeds, table, conditions=conditions) != trunk(embeds, table)
        >>> changed.any(-1).tolist()  # gates begin at zero, and the first token has no condition
        [[False, True, True]]
    """

    condition_dim: int | None = None
    shared: bool = False

    def check(self) -> None:
        """Refuses widths below 1."""
        if self.condition_dim is not None and self.condition_dim < 1:
            raise ValueError(f"condition_dim is {self.condition_dim}; accepted: 1 or more, or None")

    def width(self, dim: int) -> int:
        """C in a trunk of this width."""
        return self.condition_dim or dim

    def build(self, dim: int, branches: int) -> "LayerModulation":
        """The module of one layer that modulates so many branches."""
        return LayerModulation(self, dim, branches)

    def build_map(self, dim: int, branches: int) -> Modulation:
        """The map from conditions to (shift, scale, gate) of each branch."""
        return Modulation(self.width(dim), dim, 3 * branches)


class TokenConditions(NamedTuple):
    """Conditions as the layers of one pass read them.

    Attributes:
        vectors: the conditions.
        of: which of them the tokens have, in the layers' order: (B, K) for K runs of equal length in each row, or (N,) sorted by
            expert; M for a token without one.
        runs: K, or None where each token has an entry.
        complete: whether every token is known to have one.
        mapped: what the trunk's shared map makes of them; None where there is none.
    """

    vectors: Float[Tensor, "M C"]
    of: Int[Tensor, "*N"]
    runs: int | None = None
    complete: bool = False
    mapped: Float[Tensor, "M _"] | None = None


def read_conditions(
    conditions: Conditions, shape: Sequence[int], width: int | None, groups: RowGroups | None, shared: nn.Module | None
) -> TokenConditions:
    """Conditions of tokens (B, L) for layers that take some of this width, or None.

    Raises:
        ValueError: layers that take none, shapes that do not fit, or an index out of range (checked on CPU).
    """
    vectors, of = conditions
    if width is None:
        raise ValueError("conditions are given; accepted: None, as no layer of the trunk has a modulation")
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"conditions.vectors is {tuple(vectors.shape)}; accepted: (M, {width})")
    rows, length = shape
    if of.ndim != 2 or of.shape[0] != rows or of.shape[1] < 1 or length % of.shape[1]:
        raise ValueError(
            f"conditions.of is {tuple(of.shape)}; accepted: ({rows}, {length}), or as many runs as divide the {length}"
        )
    count, complete = len(vectors), False
    if is_readable(of) and of.numel():
        low, high = int(of.min()), int(of.max())
        if low < -1 or high >= count:
            raise ValueError(f"conditions.of lies in [{low}, {high}]; accepted: [-1, {count - 1}]")
        complete = low >= 0
    index = of if complete else torch.where(of < 0, count, of)
    runs = of.shape[1] if of.shape[1] != length else None
    if groups is not None:
        index, runs = groups.sort(index.repeat_interleave(length // of.shape[1], dim=1).flatten()), None
    return TokenConditions(vectors, index, runs, complete, None if shared is None else shared(vectors))


class Moves(NamedTuple):
    """What one branch of a layer is modulated by; all None where nothing is.

    Attributes:
        shift, scale, gate: for each token; or (B, runs, 1, D).
        runs: runs of tokens in a row that have the same; None where each token has its own.
    """

    shift: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None
    runs: int | None = None

    def read(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """What the branch reads."""
        if self.shift is None or self.scale is None:
            return x
        return self._joined(modulate(self._cut(x), self.shift, self.scale))

    def gated(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """What the branch gives."""
        return x if self.gate is None else self._joined(self._cut(x) * self.gate)

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.runs is None else x.unflatten(1, (self.runs, -1))

    def _joined(self, x: Tensor) -> Tensor:
        return x if self.runs is None else x.flatten(1, 2)


NO_MOVES = (Moves(), Moves())
"""Of the branches of a layer that is not modulated."""


class LayerModulation(nn.Module):
    """What ``AdaLN`` describes.

    Args:
        parts: the description.
        dim: D.
        branches: 2, or 1 where they are parallel.

    Attributes:
        condition_dim: C.
        map: the layer's own map; None where the trunk's is shared.
        own: what the layer adds to that, (3 * branches, D); None otherwise.
    """

    def __init__(self, parts: AdaLN, dim: int, branches: int) -> None:
        super().__init__()
        self.condition_dim, self.branches = parts.width(dim), branches
        self.map = None if parts.shared else parts.build_map(dim, branches)
        self.own = nn.Parameter(torch.randn(3 * branches, dim) / dim**0.5) if parts.shared else None

    def forward(self, conditions: TokenConditions | None) -> tuple[Moves, Moves]:
        """What each branch is modulated by; computed for each condition, then gathered for each token or run."""
        if conditions is None:
            return NO_MOVES
        moves = self._of_conditions(conditions)
        if not conditions.complete:
            unmoved = moves.new_zeros(1, 3 * self.branches, moves.shape[1] // (3 * self.branches))
            unmoved[:, 2::3] = 1  # gates
            moves = torch.cat([moves, unmoved.flatten(1)])
        gathered = embedding(conditions.of, moves)
        if conditions.runs is not None:
            gathered = gathered[:, :, None]
        pieces = gathered.chunk(3 * self.branches, dim=-1)
        branches = [Moves(*three, conditions.runs) for three in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)]
        return branches[0], branches[-1]

    def _of_conditions(self, conditions: TokenConditions) -> Float[Tensor, "M _"]:
        if self.map is not None:
            own: Tensor = self.map(conditions.vectors)
            return own
        if self.own is None or conditions.mapped is None:
            raise ValueError("the layer's modulation is shared, but the trunk has no map; accepted: layers that a Decoder built")
        return conditions.mapped + self.own.flatten()
