"""Spans as the trunk reads them: what a head says, and what the spans' embedder makes of their values.

Shapes: N tokens of all spans, S spans, G streams, D width of the trunk, C width of conditions, B rows, L tokens of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmblocks.roles import AnyEmbedder, Embedder, embed_at
from mmblocks.sequence.spans import Conditions, Reading, SpanLayout, Spans
from mmblocks.sequence.tokens import vectors_of
from mmblocks.support.named import Named


@runtime_checkable
class ReadsFinished(Protocol):
    """A head that says what is read of spans that are written, beside their values."""

    def finished(self, spans: Spans) -> Reading:
        """What the trunk reads."""
        ...


class Read(NamedTuple):
    """Spans with what is read of them."""

    spans: Spans
    reading: Reading


def finished(head: object, spans: Spans) -> Reading:
    """What is read of spans that are written: as the head says, or else their values."""
    return head.finished(spans) if isinstance(head, ReadsFinished) else Reading(values=spans.rows())


def embed_spans(inputs: Named[AnyEmbedder], read: Read, streams: int = 1) -> tuple[Float[Tensor, "G N D"], Tensor | None]:
    """What the trunk reads at the tokens of spans, and at the head's own tokens (G, M, D).

    Args:
        inputs: embedders by name.
        read: the spans, and what the head says.
        streams: G; what the head says may be the same for all of them, or come for each.

    Raises:
        ValueError: an input the model lacks, a reading of nothing, or other numbers of rows than tokens.
    """
    spans, reading = read
    count = spans.num_tokens
    embeds = None
    if reading.values is not None:
        if spans.input not in inputs:
            raise ValueError(f"spans have input {spans.input!r}; the model's inputs: {list(inputs)}")
        embeds = _by_stream("values", _embedded(inputs[spans.input], spans, reading.values), streams, count)
    if reading.added is not None:
        added = _by_stream("added", reading.added, streams, count)
        if embeds is None:
            embeds = added
        else:
            added = added.to(embeds.dtype)
            both = embeds + added
            embeds = both if reading.alone is None else torch.where(reading.alone[:, None], added, both)
    if embeds is None:
        raise ValueError("a head gave a reading without values and without what is added; accepted: either, or both")
    leads = None if reading.leads is None else _by_stream("leads", reading.leads, streams, len(spans.leads))
    if (leads is None) != (len(spans.leads) == 0):
        raise ValueError(
            f"a head gave {'no' if leads is None else 'own'} tokens for {len(spans.leads)} places; accepted: one for each"
        )
    return embeds, leads


def _embedded(embedder: AnyEmbedder, spans: Spans, values: Tensor) -> Float[Tensor, "M D"]:
    """Rows as they are, or as maps (C, height, width) for an embedder of images; one run of rows a stream, or one for all."""
    if not isinstance(embedder, Embedder) or not spans.num_tokens:
        return embed_at(embedder, values, spans.grid.repeat(len(values) // max(spans.num_tokens, 1), 1))
    maps = [one.movedim(-1, 0) for run in values.split(spans.num_tokens) for one in spans.maps(run)]
    return vectors_of(embedder(maps))


def rows_of(
    inputs: Named[AnyEmbedder], reads: Sequence[Read], rows: int, length: int, streams: int = 1
) -> tuple[Float[Tensor, "GB L D"], dict[str, Any]]:
    """Rows of spans alone, zeros elsewhere, and what the trunk takes beside them by keyword.

    Args:
        inputs: embedders by name.
        reads: spans whose places count tokens of ``rows`` rows of one stream, and what is read of them.
        rows: B of one stream.
        length: L.
        streams: G.

    Raises:
        ValueError: as ``embed_spans``.
    """
    embeds: Tensor | None = None
    for read in reads:
        own, leads = embed_spans(inputs, read, streams)
        if read.spans.fills(rows * length):
            return own.reshape(streams * rows, length, own.shape[-1]), told(reads, rows, length, streams)
        embeds = own.new_zeros(streams, rows * length, own.shape[-1]) if embeds is None else embeds
        embeds = embeds.index_copy(1, read.spans.places, own.to(embeds.dtype))
        if leads is not None:
            embeds = embeds.index_copy(1, read.spans.leads, leads.to(embeds.dtype))
    if embeds is None:
        raise ValueError("reads is empty; accepted: at least one")
    return embeds.view(streams * rows, length, -1), told(reads, rows, length, streams)


def told(reads: Sequence[Read], rows: int, length: int, streams: int = 1) -> dict[str, Any]:
    """What the trunk takes beside tokens by keyword, as far as heads say anything; arguments as of ``rows_of``."""
    said = {
        "conditions": conditions_of(reads, rows, length, streams),
        "unknown": unknown_of(reads, rows, length, streams),
    }
    return {name: value for name, value in said.items() if value is not None}


def unknown_of(reads: Sequence[Read], rows: int, length: int, streams: int = 1) -> Bool[Tensor, "GB L"] | None:
    """Which tokens of the rows are unknown; None where no head says so. Arguments as of ``rows_of``."""
    found: Tensor | None = None
    for spans, reading in reads:
        if reading.unknown is not None:
            by_stream = _by_stream("unknown", reading.unknown, streams, spans.num_tokens)
            found = by_stream.new_zeros(streams, rows * length) if found is None else found
            found = found.index_copy(1, spans.places, by_stream)
    return None if found is None else found.view(streams * rows, length)


def conditions_of(reads: Sequence[Read], rows: int, length: int, streams: int = 1) -> Conditions | None:
    """What layers are told of each token of the flattened rows; None where no head says anything.

    Args:
        reads: spans whose places count tokens of ``rows`` rows of one stream.
        rows: B of one stream.
        length: L.
        streams: G, stream after stream.
    """
    telling = [read for read in reads if read.reading.condition is not None]
    if not telling:
        return None
    of = torch.full((streams, rows * length), -1, device=telling[0].spans.device)
    vectors, first = [], 0
    for spans, reading in telling:
        condition = reading.condition
        if condition is None:
            continue
        by_stream = _by_stream("condition", condition, streams, spans.num_spans)
        if spans.fills(rows * length) and len(set(spans.counts)) == 1:  # each span is a run of its row
            runs = torch.arange(streams * spans.num_spans, device=of.device).view(streams * rows, -1)
            return Conditions(by_stream.flatten(0, 1), runs)
        stream = torch.arange(streams, device=of.device)[:, None] * spans.num_spans
        of[:, spans.places] = first + stream + spans.of
        vectors.append(by_stream.flatten(0, 1))
        first += streams * spans.num_spans
    return Conditions(torch.cat(vectors), of.view(streams * rows, length))


def part_of(spans: Spans, layout: SpanLayout, part: tuple[int, int] | None, length: int) -> tuple[Spans, int, int]:
    """The tokens of a pass: their spans, with places in the columns ``first`` to ``stop`` of a block of ``length`` columns.

    Raises:
        ValueError: a part of spans of several sizes, or one that lies outside of them.
    """
    if part is None:
        return spans, 0, length
    start, end = part
    if len(set(spans.counts)) > 1 or not 0 <= start < end <= spans.counts[0]:
        raise ValueError(f"part is {part} of spans of {spans.counts} tokens; accepted: (first, stop) in spans of one size")
    first = layout.lead + start if start else 0
    stop = layout.lead + end

    def moved(places: Tensor) -> Tensor:
        return (places // length * (stop - first) + places % length - first).flatten()

    places = moved(spans.places.unflatten(0, (spans.num_spans, -1))[:, start:end])
    leads = spans.leads[:0] if start else moved(spans.leads)
    grid = spans.grid.unflatten(0, (spans.num_spans, -1))[:, start:end].flatten(0, 1)
    count = (end - start,) * spans.num_spans
    return spans._replace(counts=count, grid=grid, places=places, leads=leads, states=places), first, stop


def _by_stream(name: str, values: Shaped[Tensor, "_ *rest"], streams: int, count: int) -> Shaped[Tensor, "G _ *rest"]:
    """Rows for all streams alike, or one run for each."""
    if len(values) == count:
        return values.expand(streams, *values.shape)
    if len(values) == streams * count:
        return values.unflatten(0, (streams, count))
    raise ValueError(f"{name} of a reading has {len(values)} rows; accepted: {count}, or {count} for each of {streams} streams")


def weighted(losses: Float[Tensor, " N"], spans: Spans) -> Float[Tensor, " N"]:
    """Losses by token or by span, with the spans' weights."""
    if spans.weight is None:
        return losses
    return losses * (spans.weight if len(losses) == spans.num_spans else spans.per_token(spans.weight))


def renamed(copies: Mapping[str, Read]) -> dict[str, Read]:
    """Clean copies beside what is learned of the same head."""
    return {f"{name} clean": read for name, read in copies.items()}
