"""Which tokens attend to which: the one attention rule, as a function of the token table, and its cheaper forms.

The rule: *q attends to k when both are in the same document and either k is clean and of a smaller order, or k is of q's kind
(both clean, or both in the same noised span) and of no larger order*. Causal text gives each token its own order; an image that
attends within itself gives all its tokens one order; a next-scale model gives one order per scale; a skip-causal model adds noised
copies that carry the order of their clean block. ``visible`` shows each of these.

``lower`` finds the cheapest form that says the same: nothing at all, two integers per query, or every pair. Queries
may be the last tokens of a longer row of keys, as they are while decoding with a cache.

Shapes: B batch, Lq queries, Lk keys; the queries are the last Lq of the keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmblocks.sequence.tokens import PADDING, TokenTable


class Causal(NamedTuple):
    """Every query attends to all keys up to itself; needs no tensor.

    Examples:
        >>> import torch
        >>> from mmblocks.sequence.masks import Causal, as_text, densify
        >>> print(as_text(densify(Causal(), num_queries=2, num_keys=5, device="cpu")))  # two tokens after three in a cache
        x x x x .
        x x x x x
    """


class Intervals(NamedTuple):
    """What each query attends to, where that is one run of neighbouring keys: ``start <= k < end``.

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence.masks import as_text, densify, intervals
        >>> table = TokenTable.text(1, 6)._replace(order=torch.tensor([[0, 1, 1, 1, 2, 3]]))  # text, an image of 3 tokens, text
        >>> mask = intervals(table)
        >>> mask.start.tolist(), mask.end.tolist()
        ([[0, 0, 0, 0, 0, 0]], [[1, 4, 4, 4, 5, 6]])
        >>> print(as_text(densify(mask, 6, 6, "cpu")))
        x . . . . .
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x x .
        x x x x x x
    """

    start: Int[Tensor, "B Lq"]
    end: Int[Tensor, "B Lq"]


class Everything(NamedTuple):
    """Every query attends to every key; needs no tensor, and no mask at all while attention is computed.

    For those who know so: ``lower`` does not look for it.

    Examples:
        >>> from mmblocks.sequence.masks import Everything, as_text, densify
        >>> print(as_text(densify(Everything(), num_queries=2, num_keys=3, device="cpu")))
        x x x
        x x x
    """


class Dense(NamedTuple):
    """Every pair: True where the query attends to the key. Nothing cheaper says that of noised copies; see ``visible``.

    Attributes:
        visible: see above.
        added: the same as numbers that are added to the scores of all heads, 0 or minus infinity, where they are there already.

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import Dense, visible
        >>> everything = Dense(torch.ones(1, 3, 3, dtype=torch.bool))
        >>> torch.equal(everything.visible.tril(), visible(TokenTable.text(1, 3)))
        True
    """

    visible: Bool[Tensor, "B Lq Lk"]
    added: Float[Tensor, "B 1 Lq Lk"] | None = None


Mask = Causal | Intervals | Everything | Dense
"""Any form of which tokens attend to which."""

MaskRule = Callable[[TokenTable, TokenTable], Tensor]
"""A user's own rule: (query table, key table) -> bool (B, Lq, Lk), True where the query attends to the key."""


def visible(queries: TokenTable, keys: TokenTable | None = None) -> Bool[Tensor, "B Lq Lk"]:
    """The rule itself, for every pair ``[b, q, k]``: the oracle for the other forms, and the form for odd masks.

    Args:
        queries: table of the query tokens.
        keys: table of the key tokens, whose last rows are the queries; the queries themselves if None.

    Examples:
        A line for each query, a column for each key. Text: each token has an order of its own.

        >>> import torch
        >>> from mmblocks import BatchBuilder, TokenTable, text, vectors
        >>> from mmblocks.sequence.masks import as_text, visible
        >>> print(as_text(visible(TokenTable.text(1, 4))))
        x . . .
        x x . .
        x x x .
        x x x x

        An image of 2 x 2 tokens between two texts, as ``bidirectional=True`` lays it out: its tokens have one order.

        >>> build = BatchBuilder()
        >>> picture = vectors(torch.zeros(2, 2, 8), input="vision", bidirectional=True)
        >>> print(as_text(visible(build([[text([7, 8]), picture, text([9])]]).table)))
        x . . . . . .
        x x . . . . .
        x x x x x x .
        x x x x x x .
        x x x x x x .
        x x x x x x .
        x x x x x x x

        Two documents packed into one row: orders begin anew, and neither attends to the other.

        >>> print(as_text(visible(build([[text([1, 2, 3])], [text([4, 5])]], pack=5).table)))
        x . . . .
        x x . . .
        x x x . .
        . . . x .
        . . . x x

        A prompt padded on the left: padding attends to itself, so that its softmax is finite, and nothing attends to it.

        >>> print(as_text(visible(build([[text([1])], [text([1, 2, 3])]], padding="left").table)))
        x . .
        . x .
        . . x

        Scales of 1, 4 and 2 tokens, each predicted at once (next-scale prediction).

        >>> orders = torch.tensor([[0, 1, 1, 1, 1, 2, 2]])
        >>> print(as_text(visible(TokenTable.text(1, 7)._replace(order=orders))))
        x . . . . . .
        x x x x x . .
        x x x x x . .
        x x x x x . .
        x x x x x . .
        x x x x x x x
        x x x x x x x

        Three clean blocks of 2 tokens and, after them, their noised copies (block by block diffusion): a copy attends to the clean
        blocks before its own and to itself, and no clean token to a copy.

        >>> blocks = torch.tensor([[0, 0, 1, 1, 2, 2] * 2])
        >>> noisy = torch.arange(12)[None] >= 6
        >>> print(as_text(visible(TokenTable.text(1, 12)._replace(order=blocks, span=blocks, noisy=noisy))))
        x x . . . . . . . . . .
        x x . . . . . . . . . .
        x x x x . . . . . . . .
        x x x x . . . . . . . .
        x x x x x x . . . . . .
        x x x x x x . . . . . .
        . . . . . . x x . . . .
        . . . . . . x x . . . .
        x x . . . . . . x x . .
        x x . . . . . . x x . .
        x x x x . . . . . . x x
        x x x x . . . . . . x x

        Two noised copies of one block, after a clean token: they have one order and two spans, and neither attends to the other.

        >>> order, span = torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 2, 2]])
        >>> print(as_text(visible(TokenTable.text(1, 5)._replace(order=order, span=span, noisy=order > 0))))
        x . . . .
        x x x . .
        x x x . .
        x . . x x
        x . . x x

        A clean token, then a noised span of three after a token for its time, and its clean copy: the time attends to the token and
        to itself. The copy goes on from the largest order of what it copies, so that neither attends to the other.

        >>> order = torch.tensor([[0, 1, 2, 2, 2, 2, 3, 3, 3]])
        >>> noisy = torch.tensor([[False, True, True, True, True, False, False, False, False]])
        >>> print(as_text(visible(TokenTable.text(1, 9)._replace(order=order, span=order.clamp(max=1), noisy=noisy))))
        x . . . . . . . .
        x x . . . . . . .
        x x x x x . . . .
        x x x x x . . . .
        x x x x x . . . .
        x . . . . x . . .
        x . . . . x x x x
        x . . . . x x x x
        x . . . . x x x x
    """
    keys = queries if keys is None else keys
    key_order, query_order = keys.order[:, None, :], queries.order[:, :, None]
    clean_key, noisy_key = ~keys.noisy[:, None, :], keys.noisy[:, None, :]
    noisy_query = queries.noisy[:, :, None]
    same_kind = (clean_key & ~noisy_query) | (noisy_key & noisy_query & _equal(queries.span, keys.span))

    seen = (clean_key & (key_order < query_order)) | (same_kind & (key_order <= query_order))
    seen = seen & _equal(queries.document, keys.document)

    # A padding row that attends to nothing would be all -inf, and its softmax NaN: let it attend to itself.
    padding = queries.is_padding[:, :, None] | keys.is_padding[:, None, :]
    return torch.where(padding, _itself(queries, keys), seen)


def intervals(queries: TokenTable, keys: TokenTable | None = None) -> Intervals | None:
    """Two integers per query instead of Lk booleans, or None where some query attends to keys that are not neighbours.

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
    # A query attends up to the last token of its own order: the position before the next change, read from the right.
    last_of_order = (changes(keys.order) | document_begins).roll(-1, dims=1)
    last_of_order[:, -1] = True
    end = torch.where(last_of_order, position + 1, length).flip(1).cummin(dim=1).values.flip(1)

    start = torch.where(keys.is_padding, position, start)
    end = torch.where(keys.is_padding, position + 1, end)
    first_query = length - queries.order.shape[1]
    return Intervals(start[:, first_query:], end[:, first_query:])


def lower(queries: TokenTable, keys: TokenTable | None = None) -> Mask:
    """The cheapest form of the rule for these tables. Reads values to decide: meant for the host.

    Padding after everything else may come out as plain causal: nothing attends to it, and what it attends to is of no matter.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, TokenTable, text
        >>> from mmblocks.sequence.masks import lower
        >>> build = BatchBuilder()
        >>> lower(build([[text([1, 2, 3])], [text([4])]]).table)
        Causal()
        >>> type(lower(build([[text([1, 2, 3])], [text([4])]], padding="left").table)).__name__
        'Intervals'
        >>> noisy = torch.tensor([[False, False, True, True]])
        >>> type(lower(TokenTable.text(1, 4)._replace(order=noisy.cumsum(1), noisy=noisy))).__name__
        'Dense'
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
    """Any form as a boolean for every pair; B is 1 for a mask without tensors."""
    match mask:
        case Dense():
            return mask.visible
        case Intervals():
            key = torch.arange(num_keys, device=device)
            return (key >= mask.start[..., None]) & (key < mask.end[..., None])
        case Everything():
            return torch.ones(1, num_queries, num_keys, dtype=torch.bool, device=device)
        case _:
            causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
            return causal.tril(num_keys - num_queries)[None]


def as_text(visible: Bool[Tensor, "B Lq Lk"], row: int = 0) -> str:
    """The mask of one row of the batch, to look at: a line for each query, ``x`` at the keys it attends to, ``.`` at the others."""
    return "\n".join(" ".join("x" if seen else "." for seen in line) for line in visible[row].tolist())


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
