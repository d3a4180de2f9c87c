"""Visual tokens that look alike become one, image by image, whatever else a row holds.

Each function takes features and their table and gives back both, shortened; see ``token_reduction``. Tokens after which a head is
asked for something, noised copies, text and padding are never merged unless ``visual`` says so.

In a causal row a merged token may know of tokens after its place: fine for prompts, which are known as a whole.

Shapes: B rows, L tokens, S images of all rows, N tokens of the largest, D width, C width of what is compared.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mmblocks.layers.reduction.token_importance import prunable
from mmblocks.layers.reduction.token_reduction import DROPPED, Shortened, merge_tokens
from mmblocks.sequence.tokens import TokenTable


class ImageTokens(NamedTuple):
    """The visual tokens of rows, sorted by image.

    Attributes:
        place: where each stands, ``row * L + column``; 0 where an image has no more tokens.
        real: False there.
    """

    place: Int[Tensor, "S N"]
    real: Bool[Tensor, "S N"]


def by_image(table: TokenTable, visual: Bool[Tensor, "B L"]) -> ImageTokens:
    """The chosen tokens of each image in their order; images are told apart by row, document and span."""
    row = torch.arange(len(visual), device=visual.device)[:, None].expand_as(visual)
    keys = torch.stack([row, table.document, table.span], dim=-1)[visual]
    place = visual.flatten().nonzero().flatten()
    if not len(place):
        return ImageTokens(place.view(0, 0), visual.new_zeros(0, 0))
    group = keys.unique(dim=0, return_inverse=True)[1]
    counts = group.bincount()
    order = group.argsort(stable=True)
    within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group[order]]
    padded = place.new_zeros(len(counts), int(counts.max())).index_put((group[order], within), place[order])
    real = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    return ImageTokens(padded, real)


def merge_pairs(
    x: Float[Tensor, "B L D"],
    table: TokenTable,
    share: float,
    *,
    metric: Float[Tensor, "B L C"] | None = None,
    size: Float[Tensor, "B L"] | None = None,
    visual: Bool[Tensor, "B L"] | None = None,
) -> Shortened:
    """Of each image, the tokens at even places that are most like one at an odd place go into that one.

    Called again and again, with the ``size`` it gave back, it merges gradually.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        share: of each image's tokens, how many shall go, rounded down; at most half.
        metric: what is compared, by its cosine; None for ``x``.
        size: how many tokens each stands for already, which are its weight.
        visual: which tokens may be merged; None for all that are visual, clean and not asked.

    Raises:
        ValueError: a share outside [0, 0.5].

    Source: ToMe (arXiv 2210.09461), as SimVLG (arXiv 2310.03291) merges visual tokens.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"share is {share}; accepted: 0 to 0.5")
    images = by_image(table, prunable(table) if visual is None else visual)
    into = _stay(table)
    if images.place.shape[1] > 1:
        compared = _of_images(normalize((x if metric is None else metric).float(), dim=-1), images)
        likeness = (compared[:, 0::2] @ compared[:, 1::2].mT).masked_fill(~images.real[:, None, 1::2], -torch.inf)
        best, closest = likeness.masked_fill(~images.real[:, 0::2, None], -torch.inf).max(dim=-1)
        rank = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        merged = rank < (images.real.sum(dim=1, keepdim=True).double() * share).long()
        target = images.place[:, 1::2].gather(1, closest)
        into = _redirected(into, images.place[:, 0::2][merged], target[merged])
    return merge_tokens(x, table, into, size)


def merge_clusters(
    x: Float[Tensor, "B L D"],
    table: TokenTable,
    share: float,
    *,
    num_neighbours: int = 5,
    metric: Float[Tensor, "B L C"] | None = None,
    size: Float[Tensor, "B L"] | None = None,
    visual: Bool[Tensor, "B L"] | None = None,
) -> Shortened:
    """Of each image, groups of tokens that lie close together become one, at the place of the group's centre.

    Centres are tokens in dense neighbourhoods that are far from denser ones; each other token goes to the nearest. Where published
    code breaks ties of density by noise, the token that comes first is taken for the denser one.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        share: of each image's tokens, how many shall be left, rounded up.
        num_neighbours: by which density is told, the token itself included.
        metric: what is compared, by its distance; None for ``x``.
        size: how many tokens each stands for already, which are its weight.
        visual: which tokens may be merged; None for all that are visual, clean and not asked.

    Raises:
        ValueError: a share that is not above 0 and at most 1, or no neighbours.

    Source: density peaks among nearest neighbours, as in TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046;
    PKU-YuanGroup/Chat-UniVi).
    """
    if not 0 < share <= 1 or num_neighbours < 1:
        raise ValueError(f"share is {share}, num_neighbours {num_neighbours}; accepted: above 0 to 1, and at least 1")
    images = by_image(table, prunable(table) if visual is None else visual)
    into = _stay(table)
    if images.place.numel():
        compared = _of_images((x if metric is None else metric).float(), images)
        wanted = (images.real.sum(dim=1).double() * share).ceil().long()
        centre = density_peaks(compared, images.real, wanted, num_neighbours)
        into = _redirected(into, images.place[images.real], images.place.gather(1, centre)[images.real])
    return merge_tokens(x, table, into, size)


def density_peaks(
    x: Float[Tensor, "S N C"], real: Bool[Tensor, "S N"], num_clusters: Int[Tensor, " S"], num_neighbours: int
) -> Int[Tensor, "S N"]:
    """For each point the centre of its cluster; centres are their own.

    Args:
        x: points of several sets.
        real: False where a set has no more points.
        num_clusters: of each set.
        num_neighbours: by which density is told, the point itself included.
    """
    neither = ~(real[:, :, None] & real[:, None])
    distance = (torch.cdist(x, x) / x.shape[-1] ** 0.5).masked_fill(neither, torch.inf)
    near = distance.topk(min(num_neighbours, x.shape[1]), largest=False).values
    squares = near.square().masked_fill(near.isinf(), 0).sum(-1) / (~near.isinf()).sum(-1).clamp(min=1)
    # Rank of density, so that ties are broken by place.
    crowded = (-squares).masked_fill(~real, -torch.inf)
    rank = crowded.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    denser = (rank[:, None] < rank[:, :, None]) & ~neither
    furthest = distance.masked_fill(neither, 0).amax(dim=(1, 2))
    isolation = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    isolation = torch.where(rank == 0, furthest[:, None], isolation)
    score = (isolation * (-squares).exp()).masked_fill(~real, -torch.inf)
    is_centre = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) < num_clusters[:, None]
    nearest = distance.masked_fill(~is_centre[:, None], torch.inf).argmin(dim=-1)
    itself = torch.arange(x.shape[1], device=x.device).expand_as(nearest)
    return torch.where(is_centre, itself, nearest)


def merge_dropped(
    x: Float[Tensor, "B L D"],
    table: TokenTable,
    keep: Bool[Tensor, "B L"],
    *,
    metric: Float[Tensor, "B L C"] | None = None,
    size: Float[Tensor, "B L"] | None = None,
    visual: Bool[Tensor, "B L"] | None = None,
) -> Shortened:
    """Tokens that are to go, by whatever importance, go into the most alike of their image that stays.

    Args:
        x: the tokens.
        table: the tokens' metadata.
        keep: True at tokens that stay. Those that go and are not visual, or whose image keeps none, are dropped.
        metric: what is compared, by its cosine; None for ``x``.
        size: how many tokens each stands for already, which are its weight.
        visual: which tokens may be merged; None for all that are visual, clean and not asked.

    Source: VScan (arXiv 2505.22654); VisionDrop (arXiv 2506.22283) likewise.
    """
    images = by_image(table, prunable(table) if visual is None else visual)
    into = torch.where(keep, _stay(table), DROPPED)
    if images.place.numel():
        compared = _of_images(normalize((x if metric is None else metric).float(), dim=-1), images)
        stays = keep.flatten()[images.place] & images.real
        best, closest = (compared @ compared.mT).masked_fill(~stays[:, None], -torch.inf).max(dim=-1)
        goes = images.real & ~stays & ~best.isinf()
        into = _redirected(into, images.place[goes], images.place.gather(1, closest)[goes])
    return merge_tokens(x, table, into, size)


def _stay(table: TokenTable) -> Int[Tensor, "B L"]:
    batch, length = table.shape
    return torch.arange(length, device=table.document.device).repeat(batch, 1)


def _of_images(x: Float[Tensor, "B L C"], images: ImageTokens) -> Float[Tensor, "S N C"]:
    return x.flatten(0, 1)[images.place]


def _redirected(into: Int[Tensor, "B L"], place: Int[Tensor, " V"], target: Int[Tensor, " V"]) -> Int[Tensor, "B L"]:
    """With the tokens at ``place`` going to ``target``, a place in the same row."""
    return into.flatten().index_put((place,), target % into.shape[1]).view_as(into)
