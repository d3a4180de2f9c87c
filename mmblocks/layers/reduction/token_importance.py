"""Which visual tokens matter: by the attention that other tokens pay to them, or that visual tokens pay to each other.

Shapes: B rows, L tokens, Q queries, H query heads, K key heads (H a multiple of K), D width of a head.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmblocks.sequence.masks import changes
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, Modality, TokenTable

_SCORES_AT_ONCE = 2**24
"""Of queries and keys, so that importance never takes the memory of whole attention maps."""


def prunable(table: TokenTable) -> Bool[Tensor, "B L"]:
    """True at visual tokens that may go: clean ones, inside an image, after which no head is supervised."""
    in_image = (table.modality == int(Modality.VISION)) & (table.span != NO_SPAN)
    return in_image & ~table.noisy & ~table.is_padding & (table.target == NO_HEAD)


def last_tokens(table: TokenTable) -> Bool[Tensor, "B L"]:
    """True at each document's last token: in a prompt, the end of the instruction."""
    begins = changes(table.document)
    ends = begins.roll(-1, dims=1)
    ends[:, -1] = True
    return ends & ~table.is_padding


def asking_tokens(table: TokenTable) -> Bool[Tensor, "B L"]:
    """True at each document's first token that a head is asked at: in training, the end of the instruction.

    Documents of which nothing is asked have none.
    """
    supervised = (table.target != NO_HEAD) & ~table.is_padding
    count = supervised.long().cumsum(dim=1)
    before = torch.where(changes(table.document), count - supervised.long(), 0).cummax(dim=1).values
    return supervised & (count - before == 1)


def chosen(flags: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """The places of the flagged tokens in their order, as many as the fullest row has; and which of them are real.

    Places that are not real are 0. Waits for the device, since the number decides a shape.
    """
    counts = flags.sum(dim=-1, keepdim=True)
    length = int(counts.max()) if flags.numel() else 0
    first = (~flags).long().argsort(dim=-1, stable=True)[:, :length]
    real = torch.arange(length, device=flags.device) < counts
    return torch.where(real, first, 0), real


def attention_received(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B K L D"],
    visible: Bool[Tensor, "B Q L"],
    counted: Bool[Tensor, "B Q"],
) -> Float[Tensor, "B L"]:
    """The attention that ends at each token: of each query, the mean over heads; of those, the mean over queries.

    Args:
        query: of one layer, after its rotation.
        key: likewise.
        visible: True where a query sees a key.
        counted: True at queries that count.

    Returns:
        In float32; zero where a row has no query.

    Source: VisionDrop (arXiv 2506.22283; Ruixxxx/VisionDrop) with visual queries, VScan (arXiv 2505.22654) with the last
    token of the instruction as the query.
    """
    heads, length = query.shape[1], key.shape[2]
    query = rearrange(query, "b (k g) q d -> b k g q d", k=key.shape[1]) * query.shape[-1] ** -0.5
    received = key.new_zeros(key.shape[0], length, dtype=torch.float32)
    step = max(_SCORES_AT_ONCE // max(len(key) * heads * length, 1), 1)
    for start in range(0, query.shape[3], step):
        here = slice(start, start + step)
        scores = torch.einsum("b k g q d, b k l d -> b k g q l", query[:, :, :, here], key).float()
        sees = visible[:, None, None, here]
        paid = scores.masked_fill(~sees, torch.finfo(torch.float32).min).softmax(dim=-1)
        received += torch.einsum("b k g q l, b q -> b l", paid, counted[:, here].float())
    return received / (heads * counted.sum(dim=1, keepdim=True).clamp(min=1))


def similarity_received(x: Float[Tensor, "B L C"], table: TokenTable, visual: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """The attention that visual tokens of one image pay to each other when features are their own queries and keys.

    Needs no layer and no text, so that tokens can be dropped in front of a trunk.

    Args:
        x: features.
        table: who the tokens are.
        visual: those that are compared.
    """
    same = (table.span[:, :, None] == table.span[:, None]) & (table.document[:, :, None] == table.document[:, None])
    seen = same & visual[:, None] & visual[:, :, None]
    return attention_received(x[:, None], x[:, None], seen, visual).masked_fill(~visual, 0)


def keep_most(importance: Float[Tensor, "B L"], candidates: Bool[Tensor, "B L"], counts: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
    """True at all tokens that are no candidates, and at each row's ``counts`` most important candidates."""
    rank = importance.masked_fill(~candidates, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ~candidates | (rank < counts[:, None])


def keep_local(
    importance: Float[Tensor, "B L"], table: TokenTable, visual: Bool[Tensor, "B L"], *, window: tuple[int, int], count: int = 1
) -> Bool[Tensor, "B L"]:
    """True at all tokens that are not visual, and at the most important ``count`` of each window of each image.

    Args:
        importance: of each token.
        table: the tokens' metadata.
        visual: those that may go.
        window: rows and columns of a window.
        count: how many stay in each.

    Raises:
        ValueError: a window or a count below one.

    Source: the local scan of VScan (arXiv 2505.22654).
    """
    if min(*window, count) < 1:
        raise ValueError(f"window is {window}, count {count}; accepted: at least 1 each")
    of_window = torch.cat(
        [
            table.document[..., None],
            table.span[..., None],
            table.grid[..., :1],
            table.grid[..., 1:] // table.grid.new_tensor(window),
        ],
        dim=-1,
    )
    row = torch.arange(len(importance), device=importance.device)[:, None, None].expand(*importance.shape, 1)
    group = torch.cat([row, of_window], dim=-1)[visual].unique(dim=0, return_inverse=True)[1]
    # Important ones first, then window by window: where a token stands in its window is its distance to the window's first.
    by_importance = importance[visual].argsort(descending=True, stable=True)
    order = by_importance[group[by_importance].argsort(stable=True)]
    sizes = group.bincount()
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group[order]]
    stays = torch.zeros_like(order, dtype=torch.bool).index_put((order,), place < count)
    return (~visual).masked_scatter(visual, stays)
