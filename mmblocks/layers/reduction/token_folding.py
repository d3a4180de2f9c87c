"""Squares of neighbouring visual tokens read and written as one: folding, and Token-Shuffle's way in and out of a trunk.

Shapes: B rows, L tokens, M tokens after folding, V folded ones of all rows, C = factor squared tokens of a square, D width.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.reduction.token_reduction import DROPPED, Shortened, drop_tokens
from mmblocks.sequence.tokens import NO_SPAN, Modality, TokenTable


class Folding(NamedTuple):
    """How squares of visual tokens become one token each. Text and padding stay as they are.

    Attributes:
        members: of each square, the places ``row * L + column`` of its tokens, row by row.
        keep: True at the tokens that stay: all that are not folded, and the first of each square.
        table: of the tokens before, with places counted in squares.
    """

    members: Int[Tensor, "V C"]
    keep: Bool[Tensor, "B L"]
    table: TokenTable

    @property
    def first(self) -> Int[Tensor, " V"]:
        """The place of each square's first token."""
        return self.members[:, 0]


def folding(table: TokenTable, factor: int, visual: Bool[Tensor, "B L"] | None = None) -> Folding:
    """Finds the squares of the images in a table.

    Ids, labels or features of the tokens before are gathered by ``members``: ``ids.flatten()[members]`` has the C ids of each
    square. A square has the order and the target of its first token.

    Args:
        table: who the tokens are.
        factor: tokens a side of a square.
        visual: the tokens to be folded; None for all visual ones of an image.

    Raises:
        ValueError: a factor below one, or an image whose rows or columns are no multiple of it.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}; accepted: at least 1")
    if visual is None:
        visual = (table.modality == int(Modality.VISION)) & (table.span != NO_SPAN) & ~table.is_padding
    row = torch.arange(len(visual), device=visual.device)[:, None].expand_as(visual)
    squares = table.grid[..., 1:] // factor
    # Noised copies of an image are images of their own, even where they have its span.
    which = [row, table.document, table.span, table.noisy.long(), table.grid[..., 0], *squares.unbind(-1)]
    place = visual.flatten().nonzero().flatten()
    members = place.view(0, factor**2) if not len(place) else place
    if len(place):
        group = torch.stack(which, dim=-1)[visual].unique(dim=0, return_inverse=True)[1]
        inside = (table.grid[..., 1:] % factor)[visual]
        slot = group * factor**2 + inside[:, 0] * factor + inside[:, 1]
        order = slot.argsort()
        if len(order) % factor**2 or not torch.equal(slot[order], torch.arange(len(order), device=slot.device)):
            raise ValueError(f"an image has rows or columns that are no multiple of {factor}, or other tokens than its patches")
        members = place[order].view(-1, factor**2)
        members = members[members[:, 0].argsort()]
    stays = torch.zeros_like(visual.flatten()).index_fill(0, members[:, 0], True).view_as(visual)
    counted = torch.where(visual[..., None], torch.cat([table.grid[..., :1], squares], dim=-1), table.grid)
    return Folding(members, ~table.is_padding & (stays | ~visual), table._replace(grid=counted))


def fold(x: Float[Tensor, "B L D"], folds: Folding, joined: Float[Tensor, "V D"]) -> Shortened:
    """Puts one vector where each square was; see ``TokenShuffle`` for how such vectors are made.

    Args:
        x: the tokens before.
        folds: the squares.
        joined: a vector of each square.
    """
    with_joined = x.flatten(0, 1).index_copy(0, folds.first, joined.to(x.dtype)).view_as(x)
    made = drop_tokens(with_joined, folds.table, folds.keep)
    now = made.into.flatten()[folds.first]
    into = made.into.flatten().index_put((folds.members,), now[:, None].expand_as(folds.members)).view_as(made.into)
    size = torch.zeros_like(made.size)
    row = torch.arange(len(into), device=into.device)[:, None].expand_as(into)
    size = size.index_put((row[into != DROPPED], into[into != DROPPED]), size.new_ones(()), accumulate=True)
    return made._replace(into=into, size=size)


class _Residual(nn.Module):
    """A feed-forward layer after a norm, added to what comes in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        return x + self.inner(self.norm(x))


class TokenShuffle(Block):
    """Squares of visual tokens to one token each: each token made narrower, the square joined, a few feed-forward layers.

    Args:
        dim: D, a multiple of ``factor`` squared.
        factor: tokens a side of a square.
        num_layers: feed-forward layers.

    Raises:
        ValueError: a ``dim`` that is no such multiple.

    Source: Token-Shuffle (arXiv 2504.17789), of which no code is published; SynerGen-VL (arXiv 2412.09604) folds likewise.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import TokenShuffle
        >>> from mmblocks.sequence import BatchBuilder, text, vectors
        >>> sample = [text([1, 2, 3]), vectors(torch.randn(4, 6, 8), input="latents")]
        >>> table = BatchBuilder()([sample]).table
        >>> shorter = TokenShuffle(dim=16, factor=2)(torch.randn(1, 3 + 24, 16), table)
        >>> tuple(shorter.x.shape), shorter.table.shape
        ((1, 9, 16), (1, 9))
    """

    def __init__(self, *, dim: int, factor: int = 2, num_layers: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.narrow = nn.Linear(dim, _narrower(dim, factor))
        self.layers = nn.Sequential(*(_Residual(dim) for _ in range(num_layers)))

    def forward(self, x: Float[Tensor, "B L D"], table: TokenTable, visual: Bool[Tensor, "B L"] | None = None) -> Shortened:
        """Rows in which each square is one token; raises what ``folding`` raises."""
        folds = folding(table, self.factor, visual)
        squares = self.narrow(x.flatten(0, 1)[folds.members])
        return fold(x, folds, self.layers(squares.flatten(1)))


class TokenUnshuffle(Block):
    """States of folded tokens to one state for each token of their squares: what a head over codes reads.

    Args:
        dim: D, a multiple of ``factor`` squared.
        factor: tokens a side of a square.
        num_layers: feed-forward layers.

    Raises:
        ValueError: a ``dim`` that is no such multiple.

    Source: Token-Shuffle (arXiv 2504.17789), of which no code is published.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import TokenUnshuffle
        >>> states = torch.randn(6, 16)
        >>> tuple(TokenUnshuffle(dim=16, factor=2)(states).shape)
        (6, 4, 16)
    """

    def __init__(self, *, dim: int, factor: int = 2, num_layers: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(*(_Residual(dim) for _ in range(num_layers)))
        self.widen = nn.Linear(_narrower(dim, factor), dim)

    def forward(self, states: Float[Tensor, "V D"]) -> Float[Tensor, "V C D"]:
        """The C states of each square, row by row, in the order of ``Folding.members``."""
        return self.widen(rearrange(self.layers(states), "v (c d) -> v c d", c=self.factor**2))


def _narrower(dim: int, factor: int) -> int:
    if factor < 1 or dim % factor**2:
        raise ValueError(f"dim is {dim}, factor {factor}; accepted: a dim that is a multiple of the factor's square")
    return dim // factor**2
