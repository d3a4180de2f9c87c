"""What is generated, as segments: text and images, each as soon as it is complete."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mmblocks.generation.autoregressive import Step
from mmblocks.generation.grammar import Grammar, ImageGrammar, State
from mmblocks.generation.span_writing import Preview, Shown
from mmblocks.sequence.segments import Codes, Segment, Vectors, text
from mmblocks.vocabulary.text_tokenizers import TextStream, TextTokenizer


class Generated(NamedTuple):
    """A segment that is complete, or a preview of one, and the row of the prompt it continues."""

    row: int
    segment: Segment | Preview


@dataclass
class _Row:
    """What a row has written and not yet handed out."""

    stream: TextStream | None
    text: list[int] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    given_out: bool = False


def segments_of(
    steps: Iterable[Step | Shown],
    grammar: Grammar | Sequence[Grammar],
    *,
    tokenizer: TextTokenizer | None = None,
    input: str = "text",
    stream: bool = False,
) -> Iterator[Generated]:
    """Splits what each row writes into text and images, in the order in which they are completed.

    Args:
        steps: what ``generate_ids`` yields.
        grammar: the one that the rows were written by, or one for each of them. A row's images are in its own grammar's format.
        tokenizer: turns text ids into strings; without one, text segments hold ids. The id that stops a row and the
            ids around an image are not part of any text.
        input: the embedder of ids, for the segments.
        stream: hand out text piece by piece as it comes, in place of whole runs. Characters are never cut, and the pieces of a run
            joined are its text.

    Raises:
        TypeError: an image in a row whose grammar is no ``ImageGrammar``.
        ValueError: streamed text of a tokenizer that changes what it gave before.
    """
    rows: dict[int, _Row] = {}
    for step in steps:
        if isinstance(step, Shown):
            yield Generated(step.row, step.preview)
            continue
        for index, (next_id, before, after) in enumerate(zip(step.ids.tolist(), step.before, step.states, strict=True)):
            if before.mode == "done":
                continue
            if index not in rows:
                rows[index] = _Row(TextStream(tokenizer) if stream and tokenizer is not None else None)
            row = rows[index]
            own = grammar[index] if isinstance(grammar, Sequence) else grammar
            if before.mode == "text" and (after.mode == "text" or (after.mode == "done" and _is_text(own, before, next_id))):
                if row.stream is not None:
                    yield from _pieces(index, row.stream.push(next_id), input)
                elif stream:
                    yield Generated(index, text([next_id], input=input))
                else:
                    row.text.append(next_id)
                continue
            yield from _rest(index, row, tokenizer, input)
            if index in step.spans:
                yield Generated(index, step.spans[index])
                row.given_out = True
            elif index in step.vectors:
                row.vectors.append(step.vectors[index])
            elif before.mode == "grid":
                row.image.append(next_id)
            if after.num_images > before.num_images and row.given_out:
                row.given_out = False
                row.image.clear()
            elif after.num_images > before.num_images:
                yield Generated(index, _image(own, row, before, input))
                row.image.clear()
                row.vectors.clear()
    for index, row in rows.items():
        yield from _rest(index, row, tokenizer, input)


def _is_text(grammar: Grammar, state: State, next_id: int) -> bool:
    """Whether an id that a row ends with is text, after which the caller has ended it, and not the grammar's own end."""
    return next_id >= 0 and grammar.advance(state, next_id).mode == "text"


def _rest(index: int, row: _Row, tokenizer: TextTokenizer | None, input: str) -> Iterator[Generated]:
    """The text of a run that is over, as far as it has not been handed out."""
    if row.stream is not None:
        yield from _pieces(index, row.stream.finish(), input)
    elif row.text:
        content = list(row.text) if tokenizer is None else tokenizer.decode(row.text)
        yield Generated(index, text(content, input=input))
        row.text.clear()


def _pieces(index: int, piece: str, input: str) -> Iterator[Generated]:
    if piece:
        yield Generated(index, text(piece, input=input))


def _image(grammar: Grammar, row: _Row, state: State, input: str) -> Codes | Vectors:
    if not isinstance(grammar, ImageGrammar):
        raise TypeError(f"{type(grammar).__name__} wrote an image and has no method image; accepted: an ImageGrammar")
    return grammar.image(state, row.image, row.vectors, input=input)
