"""Generated ids as segments: text and images, each as soon as it is complete."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from mmblocks.generation.autoregressive import Step
from mmblocks.grid_format import GridFormat
from mmblocks.segments import Codes, Text, codes, text
from mmblocks.text_tokenizers import TextTokenizer


class Generated(NamedTuple):
    """A segment that is complete, and the row of the prompt it continues."""

    row: int
    segment: Text | Codes


def segments_of(
    steps: Iterable[Step], *, format: GridFormat | None = None, tokenizer: TextTokenizer | None = None
) -> Iterator[Generated]:
    """Splits what each row writes into text and images, in the order in which they are completed.

    Args:
        steps: what ``generate_ids`` yields.
        format: how images are written; None where only text is.
        tokenizer: turns text ids into strings; without one, text segments hold ids. The id that stops a row and the
            ids around an image are not part of any text.
    """
    texts: dict[int, list[int]] = {}
    images: dict[int, list[int]] = {}
    for step in steps:
        for row, (next_id, before, after) in enumerate(zip(step.ids.tolist(), step.before, step.states, strict=True)):
            if before.mode == "done":
                continue
            if before.mode == after.mode == "text":
                texts.setdefault(row, []).append(next_id)
                continue
            if row in texts:
                yield Generated(row, _text(texts.pop(row), tokenizer))
            if before.mode == "grid" and format is not None:
                images.setdefault(row, []).append(next_id)
                if after.num_images > before.num_images:
                    height, width = before.height, before.width
                    yield Generated(row, codes(_grid(images.pop(row), format, height, width), format))
    for row, ids in texts.items():
        yield Generated(row, _text(ids, tokenizer))


def _text(ids: list[int], tokenizer: TextTokenizer | None) -> Text:
    return text(ids if tokenizer is None else tokenizer.decode(ids))


def _grid(body: list[int], format: GridFormat, height: int, width: int) -> Tensor:
    whole = [format.begin, *format.size_ids(height, width), format.image, *body]
    return format.read_image(whole)
