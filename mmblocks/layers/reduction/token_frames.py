"""Fewer tokens of a video: what stays the same from frame to frame becomes one token.

Each function takes features and their table and gives back both, shortened; see ``token_reduction``. Frames are told by the first
number of the table's ``grid``, places by the other two. Where several tokens of a frame have one place (a class token and the first
patch), they are told apart by their order.

Shapes: B rows, L tokens, V visual ones, D width, C width of what is compared.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmblocks.layers.reduction.token_importance import prunable
from mmblocks.layers.reduction.token_reduction import Shortened, merge_tokens
from mmblocks.sequence.tokens import TokenTable


class _Tracks(NamedTuple):
    """Visual tokens sorted by place, then by frame.

    Attributes:
        place: where each stands, ``row * L + column``.
        track: index of its place in its video.
        frame: its frame.
    """

    place: Int[Tensor, " V"]
    track: Int[Tensor, " V"]
    frame: Int[Tensor, " V"]


def merge_still(
    x: Float[Tensor, "B L D"],
    table: TokenTable,
    threshold: float,
    *,
    metric: Float[Tensor, "B L C"] | None = None,
    size: Float[Tensor, "B L"] | None = None,
    visual: Bool[Tensor, "B L"] | None = None,
) -> Shortened:
    """A token that is like the one at its place a frame before goes into the first of such a run.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        threshold: cosine from which on two tokens are alike.
        metric: what is compared; None for ``x``.
        size: how many tokens each stands for already, which are its weight.
        visual: which tokens may be merged; None for all that are visual, clean and not asked.
    """
    tracks = _tracks(table, prunable(table) if visual is None else visual)
    compared = (x if metric is None else metric).flatten(0, 1)[tracks.place].float()
    alike = cosine_similarity(compared[1:], compared[:-1], dim=-1) >= threshold
    follows = (tracks.track[1:] == tracks.track[:-1]) & (tracks.frame[1:] == tracks.frame[:-1] + 1)
    return merge_tokens(x, table, _into_first(table, tracks.place, alike & follows), size)


def pool_frames(
    x: Float[Tensor, "B L D"],
    table: TokenTable,
    num_frames: int,
    *,
    size: Float[Tensor, "B L"] | None = None,
    visual: Bool[Tensor, "B L"] | None = None,
) -> Shortened:
    """The mean of each place over every ``num_frames`` frames; the last group may have fewer. Frames are renumbered.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        num_frames: of a group.
        size: how many tokens each stands for already, which are its weight.
        visual: which tokens are pooled; None for all that are visual, clean and not asked.

    Raises:
        ValueError: fewer than one frame.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; accepted: at least 1")
    visual = prunable(table) if visual is None else visual
    tracks = _tracks(table, visual)
    group = tracks.frame // num_frames
    follows = (tracks.track[1:] == tracks.track[:-1]) & (group[1:] == group[:-1])
    frame = torch.where(visual, table.grid[..., 0] // num_frames, table.grid[..., 0])
    renumbered = table._replace(grid=torch.cat([frame[..., None], table.grid[..., 1:]], dim=-1))
    return merge_tokens(x, renumbered, _into_first(table, tracks.place, follows), size)


def _tracks(table: TokenTable, visual: Bool[Tensor, "B L"]) -> _Tracks:
    row = torch.arange(len(visual), device=visual.device)[:, None].expand_as(visual)
    where = torch.stack([row, table.document, table.span, *table.grid.unbind(-1)], dim=-1)[visual]
    place = visual.flatten().nonzero().flatten()
    if not len(place):
        return _Tracks(place, place, place)
    # Which of the tokens with one frame and place it is.
    group = where.unique(dim=0, return_inverse=True)[1]
    counts = group.bincount()
    order = group.argsort(stable=True)
    nth = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group[order]]
    nth = torch.zeros_like(order).index_put((order,), nth)

    frame = where[:, 3]
    track = torch.cat([where[:, :3], where[:, 4:], nth[:, None]], dim=-1).unique(dim=0, return_inverse=True)[1]
    order = frame.argsort(stable=True)
    order = order[track[order].argsort(stable=True)]
    return _Tracks(place[order], track[order], frame[order])


def _into_first(table: TokenTable, place: Int[Tensor, " V"], follows: Bool[Tensor, " V_less_1"]) -> Int[Tensor, "B L"]:
    """Each token that follows the one before it in the list goes where that one goes."""
    batch, length = table.shape
    into = torch.arange(length, device=place.device).repeat(batch, 1)
    if not len(place):
        return into
    index = torch.arange(len(place), device=place.device)
    first = torch.where(torch.cat([follows.new_zeros(1), follows]), 0, index).cummax(dim=0).values
    return into.flatten().index_put((place,), place[first] % length).view_as(into)
