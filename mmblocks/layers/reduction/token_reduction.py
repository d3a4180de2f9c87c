"""Fewer visual tokens: how rows and their table become shorter together, and AIM's ways to merge and to drop.

Each function says which tokens are left, so that positions, masks, caches and losses can follow. Other ways are in
``token_merging``, ``token_frames``, ``token_folding`` and ``token_importance``.

Shapes: B rows, L tokens, M tokens that are left, D width, H heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mmblocks.layers.reduction.token_importance import chosen, keep_most
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import is_readable

DROPPED = -1
"""Of a token that is in none of those that are left."""


class Merged(NamedTuple):
    """Tokens after merging.

    Attributes:
        x: the tokens that are left.
        kept: which token each of them was: of a merged one, that into which the others went.
        into: for each token before, which of those that are left it went into.
    """

    x: Float[Tensor, "B M D"]
    kept: Int[Tensor, "B M"]
    into: Int[Tensor, "B L"]


def merge_similar(
    x: Float[Tensor, "B L D"],
    num_merged: int,
    *,
    metric: Float[Tensor, "B L C"] | None = None,
    in_order: bool = True,
) -> Merged:
    """Averages the ``num_merged`` tokens at even places that have the closest likeness at an odd place into those.

    Args:
        x: tokens of an image, or of one frame.
        num_merged: how many tokens there shall be less, at most half of them.
        metric: what is compared, by its cosine; None for ``x``.
        in_order: leave tokens in their order. False gives the published order: what is left of the even ones, by falling likeness,
            then the odd ones.

    Raises:
        ValueError: fewer than none or more than half of the tokens.

    Source: AIM (arXiv 2412.03248; LaVi-Lab/AIM), after ToMe (arXiv 2210.09461).
    """
    length = x.shape[1]
    if not 0 <= num_merged <= length // 2:
        raise ValueError(f"num_merged is {num_merged}; accepted: 0 to {length // 2}, half of {length} tokens")
    compared = normalize(x if metric is None else metric, dim=-1)
    likeness, closest = (compared[:, 0::2] @ compared[:, 1::2].mT).max(dim=-1) if length > 1 else _alone(x)
    by_likeness = likeness.argsort(dim=-1, descending=True)
    merged, unmerged = by_likeness[:, :num_merged], by_likeness[:, num_merged:]
    if in_order:
        unmerged = unmerged.sort(dim=-1).values

    target = closest.gather(1, merged)
    even, odd = x[:, 0::2], x[:, 1::2]
    averaged = odd.scatter_reduce(1, _wide(target, x), even.gather(1, _wide(merged, x)), "mean", include_self=True)
    kept = torch.cat([2 * unmerged, torch.arange(1, length, 2, device=x.device).expand(len(x), -1)], dim=1)
    left = torch.cat([even.gather(1, _wide(unmerged, x)), averaged], dim=1)
    if in_order:
        kept, order = kept.sort(dim=-1)
        left = left.gather(1, _wide(order, x))
    return Merged(left, kept, _into(kept, 2 * merged, 2 * target + 1, length))


def attention_importance(logits: Float[Tensor, "B H L L"], *, temperature: float = 0.1, num_steps: int = 5) -> Float[Tensor, "B L"]:
    """How much attention ends at each token when it is passed on a few times: a random walk over each head's attention.

    Args:
        logits: scores of queries (rows) and keys, scaled and masked, before the softmax.
        temperature: of the softmax.
        num_steps: how often attention is passed on, from all tokens alike.

    Returns:
        The root of the mean over heads of the squared shares, in float32.

    Source: AIM (arXiv 2412.03248; LaVi-Lab/AIM).
    """
    passed = (logits.float() / temperature).softmax(dim=-1)
    share = passed.new_full(passed.shape[:-1], 1 / passed.shape[-1])
    for _ in range(num_steps):
        share = (share[..., None, :] @ passed)[..., 0, :]
    return share.square().mean(dim=1).sqrt()


def falling_rate(layer: int, *, first: int = 14, num_layers: int = 8) -> float:
    """The share of visual tokens that are left at a layer: all before ``first``, none after ``num_layers`` equal steps.

    Source: AIM (arXiv 2412.03248; LaVi-Lab/AIM), whose model has 28 layers.
    """
    return min(max(1 - (layer - first + 1) / num_layers, 0.0), 1.0)


def keep_important(importance: Float[Tensor, "B L"], visual: Bool[Tensor, "B L"], rate: float) -> Bool[Tensor, "B L"]:
    """True at the tokens that stay: all that are not visual, and of each row's visual ones the share ``rate``, rounded down.

    Raises:
        ValueError: a rate outside [0, 1].

    Source: AIM (arXiv 2412.03248; LaVi-Lab/AIM).
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; accepted: 0 to 1")
    return keep_most(importance, visual, (visual.sum(dim=-1).double() * rate).long())


class Shortened(NamedTuple):
    """Rows that have become shorter; padding is at their ends.

    Attributes:
        x: the tokens that are left, zeros at padding.
        table: the tokens' metadata.
        kept: which token each was: of a merged one, that into which the others went; 0 at padding.
        into: for each token before, which of those that are left it is in; -1 where it was dropped.
        size: how many tokens before are in each of those that are left; 0 at padding.
    """

    x: Float[Tensor, "B M D"]
    table: TokenTable
    kept: Int[Tensor, "B M"]
    into: Int[Tensor, "B L"]
    size: Float[Tensor, "B M"]


def drop_tokens(
    x: Float[Tensor, "B L D"], table: TokenTable, keep: Bool[Tensor, "B L"], size: Float[Tensor, "B L"] | None = None
) -> Shortened:
    """Takes tokens out of rows and table. Positions made before, and a cache's entries, can be gathered by ``kept``.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        keep: True at those that stay.
        size: how many tokens each stands for already; None for one each.
    """
    kept, real = chosen(keep)
    padding = TokenTable.padding(len(kept), kept.shape[1], keep.device)
    columns = [
        torch.where(_like(real, blank), _gathered(column, kept), blank) for column, blank in zip(table, padding, strict=True)
    ]
    return Shortened(
        x=torch.where(real[..., None], _gathered(x, kept), 0),
        table=TokenTable(*columns),
        kept=kept,
        into=torch.where(keep, keep.long().cumsum(dim=1) - 1, DROPPED),
        size=real.float() if size is None else _gathered(size, kept) * real,
    )


def merge_tokens(
    x: Float[Tensor, "B L D"], table: TokenTable, into: Int[Tensor, "B L"], size: Float[Tensor, "B L"] | None = None
) -> Shortened:
    """Averages tokens into others, in rows and table: what all kinds of merging have in common.

    A merged token has the row of the table, and so the place, the order and the target, of the one into which the others went.

    Args:
        x: the tokens.
        table: the tokens' metadata. Padding is taken out.
        into: for each token the place of the one it goes into, its own where it stays, -1 where it is dropped.
        size: how many tokens each stands for already, which are its weight; None for one each.

    Raises:
        ValueError: a token that goes into one that does not stay (checked on CPU).
    """
    itself = torch.arange(x.shape[1], device=x.device)
    keep = (into == itself) & ~table.is_padding
    target = into.clamp(min=0)
    fits = keep.gather(1, target) | (into == DROPPED) | table.is_padding
    if is_readable(into) and not bool(fits.all()):
        raise ValueError("into leads to a token that does not stay; accepted: places of tokens that go into themselves, or -1")
    weight = torch.ones_like(into, dtype=torch.float32) if size is None else size.float()
    weight = weight.masked_fill((into == DROPPED) | table.is_padding, 0)
    total = torch.zeros_like(weight).scatter_add(1, target, weight)
    summed = torch.zeros_like(x, dtype=torch.float32).scatter_add(1, _wide(target, x), x.float() * weight[..., None])
    alone = (total == weight) & keep  # bit for bit as it was
    averaged = torch.where(alone[..., None], x, (summed / total.clamp(min=1e-6)[..., None]).to(x.dtype))
    made = drop_tokens(averaged, table, keep, total)
    return made._replace(into=torch.where(into == DROPPED, DROPPED, made.into.gather(1, target)))


def spread(y: Float[Tensor, "B M D"], made: Shortened) -> Float[Tensor, "B L D"]:
    """For each token before the state of the one it is in now; zeros where it was dropped. Undoes the shortening of rows."""
    return _gathered(y, made.into.clamp(min=0)) * (made.into != DROPPED)[..., None]


def moved(places: Int[Tensor, " N"], made: Shortened) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
    """Where tokens stand now, as places ``row * M + column``, and which are still there: for the targets of a batch.

    Args:
        places: where they stood, ``row * L + column``.
        made: what the rows have become.
    """
    row, column = places // made.into.shape[1], places % made.into.shape[1]
    now = made.into[row, column]
    return row * made.kept.shape[1] + now.clamp(min=0), now != DROPPED


def _alone(x: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness and closest of one token or none, which have no neighbour."""
    return x.new_zeros(x.shape[:2]), torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)


def _into(kept: Tensor, merged: Tensor, target: Tensor, length: int) -> Tensor:
    """From places that are left and places that went elsewhere: for each place, the index of the one it is in now."""
    now = torch.zeros(len(kept), length, dtype=torch.long, device=kept.device)
    now = now.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    return now.scatter(1, merged, now.gather(1, target))


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def _like(flags: Tensor, column: Tensor) -> Tensor:
    return flags if column.ndim == 2 else flags[..., None]


def _gathered(column: Tensor, index: Tensor) -> Tensor:
    return column.gather(1, index if column.ndim == 2 else _wide(index, column))
