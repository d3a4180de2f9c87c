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
from mmblocks.text_tokenizers import TextTokenizer

BROKEN = "\ufffd"
"""What a tokenizer makes of bytes that are not a whole character yet."""


class Generated(NamedTuple):
    """A segment that is complete, and the row of the prompt it continues."""

    row: int
    segment: Text | Codes | Vectors


@dataclass
class _Row:
    """What a row has written and not yet handed out."""

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
        stream: hand out text piece by piece as it comes, in place of whole runs. Characters are never cut.
    """
    rows: dict[int, _Row] = {}
    for step in steps:
        for number, (next_id, before, after) in enumerate(zip(step.ids.tolist(), step.before, step.states, strict=True)):
            if before.mode == "done":
                continue
            row = rows.setdefault(number, _Row())
            if before.mode == after.mode == "text":
                row.text.append(next_id)
                if stream and (piece := _whole(row.text, tokenizer)) is not None:
                    row.text.clear()
                    yield Generated(number, text(piece, input=input))
                continue
            if row.text:
                yield Generated(number, _text(row.text, tokenizer, input))
                row.text.clear()
            if number in step.vectors:
                row.vectors.append(step.vectors[number])
            elif before.mode == "grid":
                row.image.append(next_id)
            if after.num_images > before.num_images:
                yield Generated(number, _image(row, before, format, input, vector_input))
                row.image.clear()
                row.vectors.clear()
    for number, row in rows.items():
        if row.text:
            yield Generated(number, _text(row.text, tokenizer, input))


def _whole(ids: list[int], tokenizer: TextTokenizer | None) -> str | list[int] | None:
    """The text, or None while its last character is not complete."""
    if tokenizer is None:
        return list(ids)
    decoded = tokenizer.decode(ids)
    return None if not decoded or decoded.endswith(BROKEN) else decoded


def _text(ids: list[int], tokenizer: TextTokenizer | None, input: str) -> Text:
    return text(list(ids) if tokenizer is None else tokenizer.decode(ids), input=input)


def _image(row: _Row, state: State, format: GridFormat | None, input: str, vector_input: str) -> Codes | Vectors:
    if row.vectors:
        return vectors(torch.stack(row.vectors).view(state.height, state.width, -1), input=vector_input)
    if format is None:
        raise ValueError("an image was written and no format is given: hand in the grammar's")
    return codes(format.read_image([*format.head(state.height, state.width), *row.image]), format, input=input)
