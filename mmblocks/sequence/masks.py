"""Who may see whom: the one attention rule, as a function of the token table, and its cheaper forms.

The rule: *q may see k when both are in the same document and either k is clean and of a smaller order, or k has q's
order and is of q's kind (both clean, or both in the same noised span)*. Causal text gives each token its own order; an
image that attends within itself gives all its tokens one order; a next-scale model gives one order per scale; a
skip-causal model adds noised copies that carry the order of their clean block.

``lower`` finds the cheapest form that says the same: nothing at all, two integers per query, or every pair. Queries
may be the last tokens of a longer row of keys, as they are while decoding with a cache.

Shapes: B batch, Lq queries, Lk keys; the queries are the last Lq of the keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.sequence.tokens import PADDING, TokenTable


class Causal(NamedTuple):
    """Every query sees all keys up to itself; needs no tensor.

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> BatchBuilder()([[text([1, 2, 3])]]).mask
        Causal()
    """


class Intervals(NamedTuple):
    """What each query sees, where that is one run of neighbouring keys: ``start <= k < end``.

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> mask = BatchBuilder()([[text([1, 2])], [text([3, 4])]], pack=4).mask
        >>> mask.start.tolist(), mask.end.tolist()  # of two samples in one row
        ([[0, 0, 2, 2]], [[1, 2, 3, 4]])
    """

    start: Int[Tensor, "B Lq"]
    end: Int[Tensor, "B Lq"]


class Dense(NamedTuple):
    """Every pair: True where the query sees the key.

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import Dense, visible
        >>> everything = Dense(torch.ones(1, 3, 3, dtype=torch.bool))
        >>> torch.equal(everything.visible.tril(), visible(TokenTable.text(1, 3)))
        True
    """

    visible: Bool[Tensor, "B Lq Lk"]


Mask = Causal | Intervals | Dense
"""Any form of "who may see whom"."""

MaskRule = Callable[[TokenTable, TokenTable], Tensor]
"""A user's own rule: (query table, key table) -> bool (B, Lq, Lk), True where the query sees the key."""


def visible(queries: TokenTable, keys: TokenTable | None = None) -> Bool[Tensor, "B Lq Lk"]:
    """The rule itself, for every pair ``[b, q, k]``: the oracle for the other forms, and the form for odd masks.

    Args:
        queries: table of the query tokens.
        keys: table of the key tokens, whose last rows are the queries; the queries themselves if None.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import visible
        >>> table = TokenTable.text(1, 4)
        >>> table.order[:] = table.order.new_tensor([0, 1, 1, 2])  # the two in the middle are one step
        >>> visible(table).int().tolist()
        [[[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]
    """
    keys = queries if keys is None else keys
    earlier = keys.order[:, None, :] < queries.order[:, :, None]
    clean_key, noisy_key = ~keys.noisy[:, None, :], keys.noisy[:, None, :]
    noisy_query = queries.noisy[:, :, None]
    same_kind = (clean_key & ~noisy_query) | (noisy_key & noisy_query & _equal(queries.span, keys.span))

    seen = (clean_key & earlier) | (_equal(queries.order, keys.order) & same_kind)
    seen = seen & _equal(queries.document, keys.document)

    # A padding row that saw nothing would be all -inf, and its softmax NaN: let it see itself.
    padding = queries.is_padding[:, :, None] | keys.is_padding[:, None, :]
    return torch.where(padding, _itself(queries, keys), seen)


def intervals(queries: TokenTable, keys: TokenTable | None = None) -> Intervals | None:
    """Two integers per query instead of Lk booleans, or None where some query sees keys that are not neighbours.

    Holds for text, images, and packed documents laid out in generation order; not for noised copies. Linear in Lk.
    Reads values to decide, so it is meant for the host, where the table is built.
    """
    keys = queries if keys is None else keys
    if keys.noisy.any() or not _in_generation_order(keys):
        return None

    length = keys.order.shape[1]
    position = torch.arange(length, device=keys.order.device).expand_as(keys.order)
    document_begins = changes(keys.document)
    start = torch.where(document_begins, position, 0).cummax(dim=1).values
    # A query sees up to the last token of its own order: the position before the next change, read from the right.
    last_of_order = (changes(keys.order) | document_begins).roll(-1, dims=1)
    last_of_order[:, -1] = True
    end = torch.where(last_of_order, position + 1, length).flip(1).cummin(dim=1).values.flip(1)

    start = torch.where(keys.is_padding, position, start)
    end = torch.where(keys.is_padding, position + 1, end)
    first_query = length - queries.order.shape[1]
    return Intervals(start[:, first_query:], end[:, first_query:])


def lower(queries: TokenTable, keys: TokenTable | None = None) -> Mask:
    """The cheapest form of the rule for these tables. Reads values to decide: meant for the host.

    Padding after everything else may come out as plain causal: it is never seen, and what it sees is of no matter.
    """
    keys = queries if keys is None else keys
    if _is_plain_causal(keys):
        return Causal()
    return intervals(queries, keys) or Dense(visible(queries, keys))


def find_mask(mask: Mask | MaskRule | None, queries: TokenTable, keys: TokenTable) -> Mask:
    """A mask in lowered form: as given, by a user's rule, or by the table's rule.

    Lowering reads values. Where that would wait for a GPU or break a compiled graph, every pair is computed instead:
    right, but slower than a mask that was lowered beforehand, as ``BatchBuilder`` does.
    """
    if callable(mask):
        return Dense(mask(queries, keys))
    if mask is not None:
        return mask
    if queries.document.device.type != "cpu" or torch.compiler.is_compiling():
        return Dense(visible(queries, keys))
    return lower(queries, keys)


def densify(mask: Mask, num_queries: int, num_keys: int, device: torch.device | str) -> Bool[Tensor, "B Lq Lk"]:
    """Any form as a boolean for every pair; B is 1 for a causal mask."""
    match mask:
        case Dense():
            return mask.visible
        case Intervals():
            key = torch.arange(num_keys, device=device)
            return (key >= mask.start[..., None]) & (key < mask.end[..., None])
        case _:
            causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
            return causal.tril(num_keys - num_queries)[None]


def changes(column: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """True where a run of equal values begins."""
    first = torch.ones_like(column[:, :1], dtype=torch.bool)
    return torch.cat([first, column[:, 1:] != column[:, :-1]], dim=1)


def _equal(queries: Int[Tensor, "B Lq"], keys: Int[Tensor, "B Lk"]) -> Bool[Tensor, "B Lq Lk"]:
    return queries[:, :, None] == keys[:, None, :]


def _itself(queries: TokenTable, keys: TokenTable) -> Bool[Tensor, "1 Lq Lk"]:
    num_queries, num_keys = queries.order.shape[1], keys.order.shape[1]
    itself = torch.ones(num_queries, num_keys, dtype=torch.bool, device=queries.order.device)
    return itself.tril(num_keys - num_queries).triu(num_keys - num_queries)[None]


def _in_generation_order(table: TokenTable) -> bool:
    """True where orders never fall inside a document and no document comes in two pieces."""
    document_changes = table.document[:, 1:] != table.document[:, :-1]
    rising = bool((document_changes | (table.order[:, 1:] >= table.order[:, :-1])).all())
    return rising and _num_documents(table.document) == _num_documents(table.document.sort(dim=1).values)


def _num_documents(document: Int[Tensor, "B L"]) -> int:
    """How many runs of real documents a batch has; padding does not count."""
    return int((changes(document) & (document != PADDING)).sum())


def _is_plain_causal(table: TokenTable) -> bool:
    """True where each row is one document of clean tokens with rising orders, padded at most after it."""
    padding = table.is_padding
    real_pair = ~padding[:, 1:] & ~padding[:, :-1]
    same_document = table.document[:, 1:] == table.document[:, :-1]
    rising = same_document & (table.order[:, 1:] > table.order[:, :-1])
    padding_after = (padding[:, 1:] >= padding[:, :-1]).all()
    return bool(~table.noisy.any() & padding_after & (rising | ~real_pair).all())
