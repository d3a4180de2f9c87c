"""Requests in batches: those that are answered by the same settings run together, row by row as long as each needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.interleaved import Generated
from mmblocks.generation.options import Generation
from mmblocks.generation.span_writing import Preview
from mmblocks.pipelines.replies import Event
from mmblocks.pipelines.stopping import StopStrings, UntilStop
from mmblocks.prompts.request import Components, Drawing, Request, Shows, multimodal
from mmblocks.sequence.segments import Segment, Text


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        request: which of the requests it belongs to.
        sample: which of the request's samples.
        spelled: the request.
        stop: strings at which its text ends.
        seed: of its randomness.
    """

    request: int
    sample: int
    spelled: Request
    stop: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Drawn:
    """One picture that is made in a way of its own.

    Attributes:
        request, sample, seed: as of ``Row``.
        drawing: how.
    """

    request: int
    sample: int
    drawing: Drawing
    seed: int


def events(
    rows: Sequence[Row | Drawn], components: Components, front: object, *, max_batch: int | None, stream: bool, previews: bool
) -> Iterator[Event]:
    """Answers rows batch by batch, and gives what is new; what is drawn in a way of its own comes picture by picture."""
    for batch in batches([row for row in rows if isinstance(row, Row)], max_batch):
        yield from _batch_events(batch, components, front, stream, previews)
    device = next(components.model.parameters()).device
    for row in rows:
        if isinstance(row, Drawn):
            frames = row.drawing.draw(components, torch.Generator(device).manual_seed(row.seed))
            yield Event(row.request, row.sample, frames[0] if len(frames) == 1 else frames)


def batches(rows: Sequence[Row], max_batch: int | None = None) -> list[list[Row]]:
    """Rows that can run together: of the same options, but for how long they may become."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row.spelled.options), []).append(row)
    size = max_batch or max(len(rows), 1)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _key(options: Generation) -> Any:
    """What rows of a batch share."""
    return tuple((name, _comparable(value)) for name, value in vars(options).items() if name != "generator")


def _comparable(value: object) -> Any:
    """What cannot be compared by value is equal to itself alone."""
    if isinstance(value, Mapping):
        return tuple((name, _comparable(one)) for name, one in value.items())
    with suppress(TypeError):
        hash(value)
        return value
    return id(value)


def _batch_events(rows: Sequence[Row], components: Components, front: object, stream: bool, previews: bool) -> Iterator[Event]:
    options = rows[0].spelled.options
    streams = as_guidance(options.guidance).num_streams - 1
    _check_streams(rows, streams)
    ends = StopStrings(components.text_tokenizer, [row.stop for row in rows]) if any(row.stop for row in rows) else None
    options = replace(options, generator=[row.seed for row in rows], previews=previews, ends=ends)
    texts = [UntilStop(row.stop) for row in rows]
    generated = multimodal(components).generate(
        [row.spelled.prompt for row in rows],
        [row.spelled.grammar for row in rows],
        options,
        unconditional=[row.spelled.unconditional[index] for index in range(streams) for row in rows] or None,
        tokenizer=components.text_tokenizer,
        stream=stream,
    )
    for one in generated:
        yield from _event(rows[one.row], one, texts[one.row], components, front)
    for row, text in zip(rows, texts, strict=True):
        if rest := text.finish():
            yield Event(row.request, row.sample, rest)


def _event(row: Row, one: Generated, text: UntilStop, components: Components, front: object) -> Iterator[Event]:
    if isinstance(one.segment, Preview):
        yield Event(row.request, row.sample, _shown(one.segment.segment, components, front), one.segment.step)
    elif isinstance(one.segment, Text):
        if piece := text.push(str(one.segment.content)):
            yield Event(row.request, row.sample, piece)
    else:
        if rest := text.finish():
            yield Event(row.request, row.sample, rest)
        yield Event(row.request, row.sample, _shown(one.segment, components, front))


def _shown(segment: Segment, components: Components, front: object) -> Any:
    if not isinstance(front, Shows):
        raise TypeError(f"{type(front).__name__} has no method pictures; accepted: a front that shows what its model writes")
    frames = front.pictures(components, segment)
    return frames[0] if len(frames) == 1 else frames


def _check_streams(rows: Sequence[Row], streams: int) -> None:
    for row in rows:
        if len(row.spelled.unconditional) != streams:
            found = f"{len(row.spelled.unconditional)} unconditional prompts"
            raise ValueError(f"the front gives {found}, and guidance reads {streams}; accepted: as many")


def seeds(seed: int | None, count: int) -> list[int]:
    """A seed for each sample of a request: the first is the request's own."""
    own = int(torch.randint(2**31, ())) if seed is None else seed
    return [(own + index * 1_000_003) % 2**63 for index in range(count)]
