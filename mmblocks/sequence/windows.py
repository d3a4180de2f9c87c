"""Attention that reaches back a limited number of tokens, as a narrower form of any mask.

Shapes: B batch, Lq queries, Lk keys.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.masks import Causal, Dense, Intervals, Mask
from mmblocks.sequence.tokens import NO_SPAN, TokenTable


def within_window(
    mask: Mask,
    window: int,
    queries: TokenTable,
    query_places: Int[Tensor, " Lq"],
    key_places: Int[Tensor, " Lk"],
    keys: TokenTable,
) -> Mask:
    """The mask, of which each query keeps the ``window`` tokens of its row up to itself, and its own image.

    ``window`` is 3, with text of one document; an image that attends within itself stays whole:

        text          with an image of 4 tokens at 2-5
        1 . . . .     1 . . . . . .
        1 1 . . .     1 1 . . . . .
        1 1 1 . .     1 1 1 1 1 1 .
        . 1 1 1 .     . 1 1 1 1 1 .
        . . 1 1 1     . . 1 1 1 1 .
                      . . 1 1 1 1 .
                      . . . . 1 1 1

    Args:
        mask: for all keys.
        window: tokens, the query included; 1 or more.
        queries: the queries' table.
        query_places: which token of its row each query is, and
        key_places: each key.
        keys: the keys' table, in the mask's order.

    Source: Longformer (arXiv 2004.05150), Mistral (arXiv 2310.06825); images as in Gemma 3 (arXiv 2503.19786).
    """
    if isinstance(mask, Dense):
        far = query_places[:, None] - key_places >= window
        span = queries.span[:, :, None]
        same_image = (span != NO_SPAN) & (span == keys.span[:, None]) & (queries.document[:, :, None] == keys.document[:, None])
        return Dense(mask.visible & (~far | same_image))
    if isinstance(mask, Causal):
        end = (query_places + 1).expand(queries.shape)
        mask = Intervals(torch.zeros_like(end), end)
    first = torch.minimum(query_places - window + 1, _image_begins(keys)[:, -len(query_places) :])
    return Intervals(torch.maximum(mask.start, first), mask.end)


def _image_begins(table: TokenTable) -> Int[Tensor, "B Lk"]:
    """Where the image of each token begins in its row; the token's own place for text."""
    place = torch.arange(table.shape[1], device=table.span.device).expand_as(table.span)
    before = [column.roll(1, dims=1) for column in (table.span, table.document)]
    begins = (table.span != before[0]) | (table.document != before[1]) | (table.span == NO_SPAN) | (place == 0)
    return torch.where(begins, place, 0).cummax(dim=1).values


def in_reading_order(num_queries: int, num_keys: int, device: torch.device) -> tuple[Int[Tensor, " Lq"], Int[Tensor, " Lk"]]:
    """Places of keys that stand in their row's order, and of queries that are the last of them."""
    places = torch.arange(num_keys, device=device)
    return places[num_keys - num_queries :], places
