"""Attention under any form of mask, by the fastest way the device has.

``prepare`` is called once per forward pass and turns a mask into what the device runs; ``attend`` is called per layer.

Shapes: B batch, H query heads, K key/value heads (H a multiple of K), Lq queries, Lk keys, D head width, V value width.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import dropout as dropped
from torch.nn.functional import scaled_dot_product_attention

from mmblocks.sequence.masks import Causal, Dense, Everything, Intervals, Mask, densify

SHORTEST_SPANNED = 1024
"""Below so many keys one call with a boolean mask beats one call per span on a CPU."""

FLEX_BLOCK = 128
"""flex_attention's tile."""


class Span(NamedTuple):
    """Queries ``[first, last)`` of one row that see keys ``[start, end)``: all of them, or causally."""

    row: int
    first: int
    last: int
    start: int
    end: int
    causal: bool


class Spans(NamedTuple):
    """A mask as a list of spans, each one attention call without a mask."""

    spans: tuple[Span, ...]


class Blocks(NamedTuple):
    """A mask as flex_attention's block mask."""

    block_mask: Any  # a BlockMask, which is imported on CUDA alone


Hook = Callable[[Tensor], Tensor | None]
"""Is shown a value. What it returns takes the value's place, unless that is None."""


class Observed(NamedTuple):
    """A mask under which functions see, and may change, what is computed.

    Attributes:
        mask: any other form; a ``Dense`` one if there is a hook for weights.
        weights: is shown the attention weights (B, H, Lq, Lk), in float32, or None to compute none.
        heads: is shown what each head found, (B, H, Lq, V), or None.
    """

    mask: "Prepared"
    weights: Hook | None = None
    heads: Hook | None = None


Prepared = Causal | Everything | Dense | Spans | Blocks | Observed
"""What ``attend`` reads."""


def prepare(mask: Mask, num_queries: int, num_keys: int, device: torch.device) -> Prepared:
    """Chooses how a mask is run: flex blocks on CUDA, a call per span on CPU, a boolean where neither pays.

    Under ``torch.compile`` on CPU interval masks become boolean: spans would be constants of the graph.
    """
    match mask:
        case Intervals() if device.type == "cuda" and num_queries == num_keys:
            return Blocks(interval_block_mask(mask, num_keys))
        case Intervals() if device.type == "cpu" and num_queries == num_keys >= SHORTEST_SPANNED:
            if not torch.compiler.is_compiling():
                return interval_spans(mask)
        case Causal() if num_queries == num_keys or num_queries == 1:
            return mask
        case Dense() | Everything():
            return mask
    return Dense(densify(mask, num_queries, num_keys, device))


def attend(
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B K Lk D"],
    value: Float[Tensor, "B K Lk V"],
    mask: Prepared,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H Lq V"]:
    """softmax(scale * query key^T) value under the mask; ``scale`` is 1/sqrt(D) if None. Heads are grouped as H/K.

    With a ``softcap`` c scores s become ``c tanh(s / c)`` before the softmax (Gemma 2). ``dropout`` is on the weights, under every
    pair, all of them, or those before.

    Raises:
        ValueError: dropout with a softcap, or under another form of mask.
    """
    grouped = query.shape[1] != key.shape[1]
    if dropout and (softcap is not None or isinstance(mask, Blocks | Spans)):
        raise ValueError(f"dropout is {dropout} under {type(mask).__name__}; accepted: 0, or a Causal, Dense or Everything mask")
    match mask:
        case Observed():
            return _attend_observed(query, key, value, mask, scale, softcap, dropout)
        case Blocks():
            flex = _flex_attention(query.device.type == "cuda")
            cap = {} if softcap is None else {"score_mod": _capped_score(softcap)}
            return flex(query, key, value, block_mask=mask.block_mask, scale=scale, enable_gqa=grouped, **cap)
        case Spans():
            return _attend_spans(query, key, value, mask.spans, scale, softcap)
    if softcap is not None:
        visible = densify(mask, query.shape[2], key.shape[2], query.device)[:, None]
        return _weighted(_weights(query, key, visible, scale, softcap), value)
    if grouped and query.shape[2] == 1 and query.device.type == "cpu" and not dropout:
        return _attend_grouped(query, key, value, mask, scale)
    seen = _for_heads(mask, query) if isinstance(mask, Dense) else None
    causal = isinstance(mask, Causal) and query.shape[2] > 1  # a single query is the newest token: it sees every key
    return scaled_dot_product_attention(query, key, value, seen, dropout, causal, scale=scale, enable_gqa=grouped)


def _attend_grouped(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float | None) -> Tensor:
    """One query each: the heads of a group are taken as queries of one head, so that its keys and values are read once."""
    queries = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
    seen = _for_heads(mask, query) if isinstance(mask, Dense) else None
    found = scaled_dot_product_attention(queries, key, value, attn_mask=seen, scale=scale)
    return found.reshape(*query.shape[:3], value.shape[-1])


def _for_heads(mask: Dense, query: Tensor) -> Shaped[Tensor, "B 1 Lq Lk"]:
    """As attention takes it; of booleans it would make numbers in each layer anew."""
    return mask.visible[:, None] if mask.added is None else mask.added.to(query.dtype)


def changed(hook: Hook | None, value: Tensor) -> Tensor:
    """The value, or what the hook puts in its place.

    Raises:
        ValueError: another shape.
    """
    new = None if hook is None else hook(value)
    if new is not None and new.shape != value.shape:
        raise ValueError(f"a hook gave {tuple(new.shape)} in place of {tuple(value.shape)}; accepted: the same shape, or None")
    return value if new is None else new


def interval_spans(mask: Intervals) -> Spans:
    """Groups neighbouring queries that one attention call can serve. Reads values: for masks on the host."""
    spans: list[Span] = []
    for row, (starts, ends) in enumerate(zip(mask.start.tolist(), mask.end.tolist(), strict=True)):
        first = 0
        length = len(starts)
        while first < length:
            causal = ends[first] == first + 1
            last = first + 1
            while last < length and starts[last] == starts[first] and _joins(causal, ends, first, last):
                last += 1
            spans.append(Span(row, first, last, starts[first], ends[last - 1], causal))
            first = last
    return Spans(tuple(spans))


def interval_block_mask(mask: Intervals, num_keys: int) -> Any:
    """flex_attention's BlockMask from two integers per query, without visiting the pairs and without waiting for the GPU.

    A tile of keys is skipped where no query of the tile of queries sees it, and run without a mask where all do.
    """
    from torch.nn.attention.flex_attention import BlockMask

    batch, num_queries = mask.start.shape
    num_tiles = -(-num_queries // FLEX_BLOCK)
    key_tiles = -(-num_keys // FLEX_BLOCK)
    spare = num_tiles * FLEX_BLOCK - num_queries
    start = torch.nn.functional.pad(mask.start, (0, spare), value=num_keys).view(batch, num_tiles, FLEX_BLOCK)
    end = torch.nn.functional.pad(mask.end, (0, spare), value=0).view(batch, num_tiles, FLEX_BLOCK)
    first_key = torch.arange(key_tiles, device=start.device) * FLEX_BLOCK
    last_key = (first_key + FLEX_BLOCK).clamp(max=num_keys)

    touched = (first_key < end.amax(-1)[..., None]) & (last_key > start.amin(-1)[..., None])
    whole_tile = (first_key + FLEX_BLOCK <= num_keys)[None, None]
    full = (first_key >= start.amax(-1)[..., None]) & (last_key <= end.amin(-1)[..., None]) & whole_tile

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= mask.start[b, q]) & (k < mask.end[b, q])

    return BlockMask.from_kv_blocks(
        *_tile_lists(touched & ~full),
        *_tile_lists(full),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=sees,
        seq_lengths=(num_queries, num_keys),
    )


def _tile_lists(chosen: Bool[Tensor, "B Q K"]) -> tuple[Tensor, Tensor]:
    """How many key tiles each query tile has, and which, chosen ones first."""
    count = chosen.sum(-1, dtype=torch.int32)
    order = chosen.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count[:, None], order[:, None]


def _joins(causal: bool, ends: list[int], first: int, last: int) -> bool:
    """Whether query ``last`` continues the span that began at ``first``."""
    return ends[last] == last + 1 if causal else ends[last] == ends[first]


def _attend_spans(
    query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...], scale: float | None, softcap: float | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    rows: list[list[Tensor]] = [[] for _ in range(query.shape[0])]
    for row, first, last, start, end, causal in spans:
        queries, keys, values = query[row, None, :, first:last], key[row, None, :, start:end], value[row, None, :, start:end]
        seen = None
        if causal and (first > start or softcap is not None):  # is_causal would align the first query with the first key
            seen = densify(Causal(), last - first, end - start, query.device)[:, None]
        if softcap is None:
            found = scaled_dot_product_attention(
                queries, keys, values, attn_mask=seen, is_causal=causal and seen is None, scale=scale, enable_gqa=grouped
            )
        else:
            found = _weighted(_weights(queries, keys, seen, scale, softcap), values)
        rows[row].append(found)
    return torch.cat([torch.cat(pieces, dim=2) for pieces in rows])


def _attend_observed(
    query: Tensor, key: Tensor, value: Tensor, mask: Observed, scale: float | None, softcap: float | None, rate: float
) -> Tensor:
    """Step by step where a hook reads the weights, the fast way where none does."""
    if mask.weights is None:
        return changed(mask.heads, attend(query, key, value, mask.mask, scale, softcap, rate))
    if not isinstance(mask.mask, Dense):
        raise TypeError(f"weights are observed under a {type(mask.mask).__name__}; accepted: Dense")
    weights = changed(mask.weights, _weights(query, key, mask.mask.visible[:, None], scale, softcap))
    return changed(mask.heads, _weighted(dropped(weights, rate) if rate else weights, value))


def _weights(
    query: Tensor, key: Tensor, visible: Bool[Tensor, "_ 1 Lq Lk"] | None, scale: float | None, softcap: float | None
) -> Float[Tensor, "B H Lq Lk"]:
    """Attention weights in float32; where nothing says what is visible, all is."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grouped = rearrange(query * scale, "b (k g) l d -> b k g l d", k=key.shape[1])
    scores = (grouped.float() @ key[:, :, None].float().mT).flatten(1, 2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is None:
        return scores.softmax(dim=-1)
    # Finite, so that a row that sees nothing has gradients; its weights are zero.
    return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1) * visible


def _weighted(weights: Float[Tensor, "B H Lq Lk"], value: Float[Tensor, "B K Lk V"]) -> Float[Tensor, "B H Lq V"]:
    """The values under these weights."""
    grouped = rearrange(weights.to(value.dtype), "b (k g) l m -> b k g l m", k=value.shape[1])
    return (grouped @ value[:, :, None]).flatten(1, 2)


@cache
def _capped_score(softcap: float) -> Callable[..., Tensor]:
    """flex_attention's form of a soft cap; one function for each value, so that it is compiled once."""

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, flex_attention materialises every score: right, and only good for tests.
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
