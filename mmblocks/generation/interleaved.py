"""What is generated, as segments: text and images, each as soon as it is complete."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmblocks.generation.autoregressive import Step
from mmblocks.generation.grammar import State
from mmblocks.grid_format import GridFormat
from mmblocks.segments import Codes, Text, Vectors, codes, text, vectors
from mmblocks.text_tokenizers import TextStream, TextTokenizer


class Generated(NamedTuple):
    """A segment that is complete, and the row of the prompt it continues."""

    row: int
    segment: Text | Codes | Vectors


@dataclass
class _Row:
    """What a row has written and not yet handed out."""

    stream: TextStream | None
    text: list[int] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)


def segments_of(
    steps: Iterable[Step],
    *,
    format: GridFormat | None = None,
    tokenizer: TextTokenizer | None = None,
    input: str = "text",
    vector_input: str = "latent",
    stream: bool = False,
) -> Iterator[Generated]:
    """Splits what each row writes into text and images, in the order in which they are completed.

    Args:
        steps: what ``generate_ids`` yields.
        format: how images are written; None where only text is, or continuous images.
        tokenizer: turns text ids into strings; without one, text segments hold ids. The id that stops a row and the
            ids around an image are not part of any text.
        input: the embedder of ids, for the segments.
        vector_input: the embedder of vectors, for the segments of continuous images.
        stream: hand out text piece by piece as it comes, in place of whole runs. Characters are never cut, and the pieces of a run
            joined are its text.

    Raises:
        ValueError: an image without a format; streamed text of a tokenizer that changes what it gave before.
    """
    rows: dict[int, _Row] = {}
    for step in steps:
        for number, (next_id, before, after) in enumerate(zip(step.ids.tolist(), step.before, step.states, strict=True)):
            if before.mode == "done":
                continue
            if number not in rows:
                rows[number] = _Row(TextStream(tokenizer) if stream and tokenizer is not None else None)
            row = rows[number]
            if before.mode == after.mode == "text":
                if row.stream is not None:
                    yield from _pieces(number, row.stream.push(next_id), input)
                elif stream:
                    yield Generated(number, text([next_id], input=input))
                else:
                    row.text.append(next_id)
                continue
            yield from _rest(number, row, tokenizer, input)
            if number in step.vectors:
                row.vectors.append(step.vectors[number])
            elif before.mode == "grid":
                row.image.append(next_id)
            if after.num_images > before.num_images:
                yield Generated(number, _image(row, before, format, input, vector_input))
                row.image.clear()
                row.vectors.clear()
    for number, row in rows.items():
        yield from _rest(number, row, tokenizer, input)


def _rest(number: int, row: _Row, tokenizer: TextTokenizer | None, input: str) -> Iterator[Generated]:
    """The text of a run that is over, as far as it has not been handed out."""
    if row.stream is not None:
        yield from _pieces(number, row.stream.finish(), input)
    elif row.text:
        content = list(row.text) if tokenizer is None else tokenizer.decode(row.text)
        yield Generated(number, text(content, input=input))
        row.text.clear()


def _pieces(number: int, piece: str, input: str) -> Iterator[Generated]:
    if piece:
        yield Generated(number, text(piece, input=input))


def _image(row: _Row, state: State, format: GridFormat | None, input: str, vector_input: str) -> Codes | Vectors:
    if row.vectors:
        return vectors(torch.stack(row.vectors).view(state.height, state.width, -1), input=vector_input)
    if format is None:
        raise ValueError("an image was written and no format is given: hand in the grammar's")
    return codes(format.read_image([*format.head(state.height, state.width), *row.image]), format, input=input)
