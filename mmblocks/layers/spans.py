"""Spans as the trunk reads them: what a head says, and what the spans' embedder makes of their values.

Shapes: N tokens of all spans, S spans, G streams, D width of the trunk, C width of conditions, B rows, L tokens of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmblocks.roles import AnyEmbedder, embed_at
from mmblocks.sequence.spans import Conditions, Reading, Spans
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
        embeds = _by_stream("values", _embedded(inputs[spans.input], reading.values, spans), streams, count)
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


def _embedded(embedder: AnyEmbedder, values: Tensor, spans: Spans) -> Float[Tensor, "_ D"]:
    """What an embedder makes of the values of one stream, or of all of them."""
    return embed_at(embedder, values, spans.grid.repeat(len(values) // max(spans.num_tokens, 1), 1))


def conditions_of(reads: Sequence[Read], rows: int, length: int, streams: int = 1) -> Conditions | None:
    """What layers are told of each token of the flattened rows; None where no head says anything.

    Args:
        reads: spans whose places count tokens of ``rows`` rows of one stream.
        rows: B of one stream.
        length: L.
        streams: G, stream after stream.
    """
    told = [read for read in reads if read.reading.condition is not None]
    if not told:
        return None
    of = torch.full((streams, rows * length), -1, device=told[0].spans.device)
    vectors, first = [], 0
    for spans, reading in told:
        condition = reading.condition
        if condition is None:
            continue
        by_stream = _by_stream("condition", condition, streams, spans.num_spans)
        stream = torch.arange(streams, device=of.device)[:, None] * spans.num_spans
        of[:, spans.places] = first + stream + spans.of
        vectors.append(by_stream.flatten(0, 1))
        first += streams * spans.num_spans
    return Conditions(torch.cat(vectors), of.view(streams * rows, length))


def _by_stream(name: str, values: Shaped[Tensor, "_ *rest"], streams: int, count: int) -> Shaped[Tensor, "G _ *rest"]:
    """Rows for all streams alike, or one run for each."""
    if len(values) == count:
        return values.expand(streams, *values.shape)
    if len(values) == streams * count:
        return values.unflatten(0, (streams, count))
    raise ValueError(f"{name} of a reading has {len(values)} rows; accepted: {count}, or {count} for each of {streams} streams")
