"""Attention that reaches back a limited number of tokens, as a narrower form of any mask.

Shapes: B batch, Lq queries, Lk keys.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.documents import noised_run_begins
from mmblocks.sequence.masks import Causal, Dense, Everything, Intervals, Mask, MaskRule, changes, visible
from mmblocks.sequence.tokens import NO_SPAN, TokenTable


def within_window(
    mask: Mask,
    window: int,
    queries: TokenTable,
    query_places: Int[Tensor, "*B Lq"],
    key_places: Int[Tensor, "*B Lk"],
    keys: TokenTable,
) -> Mask:
    """The mask, of which each query keeps the ``window`` tokens of its row up to itself, or those since its own image began.

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
        query_places: which token of its row each query is, in all rows or in each, and
        key_places: each key.
        keys: the keys' table, in the mask's order.

    Source: Longformer (arXiv 2004.05150), Mistral (arXiv 2310.06825); images as in Gemma 3 (arXiv 2503.19786).
    """
    first = torch.minimum(query_places - window + 1, _image_begins(queries, query_places, keys, key_places))
    if isinstance(mask, Dense):
        return Dense(mask.visible & (key_places[..., None, :] >= first[..., None]))
    if isinstance(mask, Causal):
        end = (query_places + 1).expand(queries.shape)
        mask = Intervals(torch.zeros_like(end), end)
    if isinstance(mask, Everything):
        start = torch.zeros(queries.shape, dtype=torch.long, device=keys.document.device)
        mask = Intervals(start, torch.full_like(start, keys.shape[1]))
    return Intervals(torch.maximum(mask.start, first), mask.end)


def _image_begins(
    queries: TokenTable, query_places: Int[Tensor, "*B Lq"], keys: TokenTable, key_places: Int[Tensor, "*B Lk"]
) -> Int[Tensor, "B Lq"]:
    """Where the image of each query begins in its row, as far as there are keys of it; the query's own place for text."""
    if queries.shape[1] == 1:  # a step of decoding looks at each key once, without sorting
        own = (keys.span == queries.span) & (keys.document == queries.document) & (queries.span != NO_SPAN)
        return torch.where(own, key_places, query_places).amin(dim=1, keepdim=True)
    document = 2 * torch.cat([queries.document, keys.document], dim=1) + torch.cat([queries.noisy, keys.noisy], dim=1)
    span = torch.cat([queries.span, keys.span], dim=1)
    place = torch.cat([query_places.expand_as(queries.span), key_places.expand_as(keys.span)], dim=1)
    image, order = (document * (span.amax() + 2) + span + 1).sort(dim=1)  # one integer for each image of each document
    run = changes(image).long().cumsum(dim=1) - 1
    first = torch.zeros_like(place).scatter_reduce(1, run, place.gather(1, order), "amin", include_self=False)
    begins = torch.empty_like(first).scatter(1, order, first.gather(1, run))
    return torch.where(span == NO_SPAN, place, begins)[:, : queries.shape[1]]


def clean_places(table: TokenTable) -> Int[Tensor, "B L"]:
    """Which token of its row each is, where noised copies count on from what is before them, and nothing counts them."""
    noisy = table.noisy.long()
    before = noisy.cumsum(dim=1) - noisy
    index = torch.arange(table.shape[1], device=noisy.device).expand_as(noisy)
    return torch.where(table.noisy, index - before.gather(1, noised_run_begins(table)), index - before)


def in_reading_order(num_queries: int, num_keys: int, device: torch.device) -> tuple[Int[Tensor, " Lq"], Int[Tensor, " Lk"]]:
    """Places of keys that stand in their row's order, and of queries that are the last of them."""
    places = torch.arange(num_keys, device=device)
    return places[num_keys - num_queries :], places


def mask_in_any_order(table: TokenTable, keys: TokenTable, rule: MaskRule | None) -> Dense:
    """The rule for keys in any order, where the tokens themselves need not be the last; empty places are attended to by none."""
    seen = (rule or visible)(table, keys)
    return Dense(seen & (table.is_padding[:, :, None] | ~keys.is_padding[:, None, :]))
