"""The grammar of text and images in a ``GridFormat``.

Where a row stands inside an image follows from the image's size and from how many tokens have been written, so that row ends and
closings are never left to chance.
"""

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from mmblocks.generation.grammar import TEXT_TOKEN, Described, IdRange, State
from mmblocks.generation.whole_grids import written_grid
from mmblocks.sequence.pieces import NO_ID
from mmblocks.sequence.segments import Codes, Segment, codes
from mmblocks.sequence.tokens import Modality
from mmblocks.vocabulary.grid_format import ANY_CODE, FINISHED, GridFormat

SizeRule = tuple[int, ...] | Literal["reference", "first"]
"""A fixed (height, width), or which image's size the next one takes; see ``GridGrammar``."""


MOST_REMEMBERED = 4096
"""Places in images of which a grammar remembers what it said."""


class GridGrammar:
    """Text and images in a ``GridFormat``.

    Args:
        format: how the vocabulary writes an image. Other ids than its codes are text, but for its own structure.
        size: (height, width) in tokens of every image; "reference": that of the last image before, which the prompt must hold;
            "first": likewise, but where there is none the model writes the size; None: the model writes every size.
        num_images: how many images may be written; the row ends with the last one if ``stop`` is empty.
        stop: text ids that end a row.
        vocab_size: where text ids stand after the codes too, as in Chameleon; None if the codes end the vocabulary.
        size_digits: fewest and most digits of a height or width that the model writes. Emu3.5's code takes exactly two.
        structure_in_text: also allow the ids of rows and closings as text, as Emu3.5's code does. They then mean nothing.
        head: the head that writes codes, where it is another one than that of text (ARMOR, OmniMamba).
        input: the embedder that reads codes, likewise.
        modality: what the codes stand for.
        whole: whether ``head`` writes all codes of an image together, as a ``roles.SpanHead`` such as ``MaskedCodesHead`` does; ids
            between them are given, and read by ``input`` too.

    Raises:
        ValueError: for a size or a number of images below 1, or a size the format cannot write; ``whole`` without a head, or codes
            whose ids have gaps.

    Examples:
        >>> from mmblocks import GridFormat, GridGrammar
        >>> from mmblocks.vocabulary import CodeIds
        >>> form = GridFormat(begin=0, closing=(1,), row_end=2, codes=CodeIds(sizes=(8,), first=3), fixed_size=(2, 2))
        >>> grammar = GridGrammar(form)
        >>> state = grammar.start()
        >>> for next_id in (0, 3, 10):  # an image opens, and its first row is written
        ...     state = grammar.advance(state, next_id)
        >>> grammar.allowed(state)  # the id that ends the row, and no other
        ((2, 3),)
    """

    def __init__(
        self,
        format: GridFormat,
        *,
        size: SizeRule | None = None,
        num_images: int = 1,
        stop: tuple[int, ...] = (),
        vocab_size: int | None = None,
        size_digits: tuple[int, int] = (1, 3),
        structure_in_text: bool = False,
        head: str | None = None,
        input: str | None = None,
        modality: int = Modality.VISION,
        whole: bool = False,
    ) -> None:
        if isinstance(size, str) and size not in ("reference", "first"):
            raise ValueError(f"size is {size!r}; accepted: (height, width), 'reference', 'first' or None")
        if isinstance(size, tuple) and min(size) < 1:
            raise ValueError(f"size is {size}; accepted: height and width of at least 1 token")
        if num_images < 0 or (num_images == 0 and not stop):
            raise ValueError(f"num_images is {num_images}; accepted: 1 or more, or 0 with stop ids")
        if not 1 <= size_digits[0] <= size_digits[1]:
            raise ValueError(f"size_digits is {size_digits}; accepted: (fewest, most), at least 1")
        if format.fixed_size is not None and size not in (None, format.fixed_size):
            raise ValueError(f"size is {size}; accepted: {format.fixed_size}, the only size of this format")
        if isinstance(size, tuple):
            format.size_ids(*size)  # which refuses sides that cannot be written
        self.format, self.num_images, self.stop, self.size_digits = format, num_images, stop, size_digits
        self.size, self.head, self.input, self.modality = size or format.fixed_size, head, input, int(modality)
        self.whole = whole
        vocab_size = format.codes.stop if vocab_size is None else vocab_size
        structure = set() if structure_in_text else set(format.structure)
        begin = set() if format.begin is None else {format.begin}
        self._codes: tuple[IdRange, ...] = format.codes.ranges
        self._levels: tuple[tuple[IdRange, ...], ...] = tuple(map(format.codes.ranges_of, range(format.num_levels)))
        self._text = _ranges_without(vocab_size, self._codes, structure)
        self._text_only = _ranges_without(vocab_size, self._codes, structure | begin)
        self._digit = tuple((digit, digit + 1) for digit in (*format.digits, *sorted(own for _, own in format.sides)))
        self._bodies: dict[tuple[int, ...], tuple[int, ...]] = {}
        if whole and (head is None or any(len(ranges) > 1 for ranges in self._levels)):
            accepted = "the name of a head of whole spans, and codes whose ids follow each other"
            raise ValueError(f"whole is True, head {head!r}, the codes' ids {self._codes}; accepted: {accepted}")
        self._described: dict[tuple[int, tuple[int, ...]], Described] = {}
        self._num_axes = format.num_axes

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Where a prompt ends. It may hold images of any size, which are not counted, and stop ids of earlier turns.

        Raises:
            ValueError: if its image tokens stand in no order that the format knows, if it begins an image of another size, or if
                there is no image whose size the next one could take.
        """
        if self.format.begin is None:
            return self._opened(State())
        state, reader = State(), self._reader(len(prompt) + 1)
        for next_id in prompt:
            state = reader.advance(state, next_id)
        if self.size == "reference" and not state.num_images:
            raise ValueError("size is 'reference' and the prompt holds no image; accepted: a prompt with an image in it")
        if (
            self.whole
            and state.mode == "grid"
            and 0 < state.offset < self.format.body(*self._size(state)).length(*self._size(state))
        ):
            raise ValueError(
                "a prompt ends inside an image that is written whole; accepted: before its first code, or after its rows"
            )
        wanted = self._wanted_size(state)
        if state.mode == "size" and wanted is not None and state.size != wanted[: len(state.size)]:
            raise ValueError(f"prompt begins an image whose size starts with ids {state.size}; accepted: {wanted}")
        return state._replace(num_images=0)

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """The ids that may come next."""
        match state.mode:
            case "text":
                return self._text if state.num_images < self.num_images else self._text_only
            case "size":
                return self._allowed_in_size(state)
            case "grid":
                expected = self._expected(state)
                if expected != ANY_CODE:
                    return ((expected, expected + 1),)
                if self.whole:
                    return ()
                levels = self._levels
                return self._codes if len(levels) == 1 else levels[self.format.level(state.offset, *self._size(state))]
            case _:
                return self._text

    def describe(self, state: State) -> Described:
        """A visual token where a code comes next, text elsewhere."""
        if state.mode != "grid":
            return TEXT_TOKEN
        size = self._size(state)
        described = self._described.get((state.offset, size))
        if described is None:
            described = self._described_code(state.offset, size) if self._expected(state) == ANY_CODE else TEXT_TOKEN
            if len(self._described) == MOST_REMEMBERED:
                self._described.clear()
            self._described[state.offset, size] = described
        return described

    def _described_code(self, offset: int, size: tuple[int, ...]) -> Described:
        """A code, or all of them where they are written together."""
        if self.whole:
            values = size if self.format.num_levels == 1 else (*size, self.format.num_levels)
            return Described(self.modality, True, (0, 0, 0), self.head, self.input, "span", values, format=self.format)
        return Described(self.modality, True, self.format.place_in(offset, *size), self.head, self.input)

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Codes, digits of sizes, and text, as far as they may still come."""
        found = self.image_choices(state)
        if state.mode == "text" or (state.mode != "done" and self._goes_on(state)):
            found.append((None, self.allowed(state) if state.mode == "text" else self._text_only))
        return [(head, ranges) for head, ranges in found if ranges]

    def image_choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Codes, and digits of sizes."""
        opens = state.num_images < self.num_images and self.format.begin is not None
        if state.mode == "done" or not (state.in_image or opens):
            return []
        found: list[tuple[str | None, tuple[IdRange, ...]]] = [] if self.whole else [(self.head, self._codes)]
        if (state.mode in ("size", "text") or self._goes_on(state)) and self._wanted_size(state) is None and self._digit:
            found.append((None, self._digit))
        return found

    def _goes_on(self, state: State) -> bool:
        """Whether text comes after the image that is being written."""
        return self.format.begin is not None and (state.num_images + 1 < self.num_images or bool(self.stop))

    def advance(self, state: State, next_id: int) -> State:
        """The state after ``next_id``, or after a span, which has ``NO_ID``.

        Raises:
            ValueError: if the grammar does not allow that id here.
        """
        if state.mode == "done":
            return state
        if next_id == NO_ID and self.whole and state.mode == "grid" and not state.offset:
            size = self._size(state)
            return self._after_grid_token(state._replace(offset=self.format.body(*size).length(*size) - 1))
        if not self._allows(state, next_id):
            where = "text" if state.mode == "text" else f"the {state.mode} of an image"
            raise ValueError(f"id {next_id} cannot stand in {where}; accepted ranges: {self.allowed(state)}")
        match state.mode:
            case "text" if next_id in self.stop:
                return state._replace(mode="done")
            case "text":
                return self._opened(state) if next_id == self.format.begin else state
            case "size":
                return self._after_size_token(state, next_id)
            case _:
                return self._after_grid_token(state)

    def max_tokens(self, state: State) -> int | None:
        """Tokens that are written at most from here on; None before text, and before an image whose size the model writes."""
        following = self.num_images - state.num_images - 1
        if state.mode == "done":
            return 0
        if self.stop or state.mode == "text" or (following and self.format.begin is not None):
            return None
        size, written = self._size(state), state.offset
        if state.mode == "size":
            wanted = self._wanted_size(state)
            if wanted is None:
                return None
            size = self.format.read_size([one for one in wanted if one != self.format.image])
            written = len(state.size) - len(wanted)
        return (following + 1) * self.format.length(*size) - written

    def image(self, state: State, ids: Sequence[int], vectors: Sequence[Tensor] = (), *, input: str = "text") -> Codes:
        """The codes of a complete image, whose size ``state`` says."""
        head = self.format.head(*self._size(state))
        return codes(self.format.read_image([*head, *ids]), self.format, input=self.input or input, modality=self.modality)

    def span(self, state: State, values: Tensor) -> Codes:
        """What a head of whole spans has written: the ids from the first code to the last, or from earlier ones on.

        In a preview codes that are not found yet are -1.
        """
        grid = written_grid(self.format, self._size(state), values)
        return codes(grid, self.format, target=self.head, input=self.input or "text", modality=self.modality)

    def read_back(self, state: State, segment: Segment) -> Sequence[Segment]:
        """The rows of the image; what opens it has been read, and what closes it follows."""
        return [replace(segment, format=self.format.body(*self._size(state)))] if isinstance(segment, Codes) else [segment]

    def _allows(self, state: State, next_id: int) -> bool:
        allowed = self.allowed(state)
        if state.mode == "size" or len(allowed) == 1:
            return any(first <= next_id < stop for first, stop in allowed)
        place = bisect_right(allowed, next_id, key=_first) - 1  # ranges of codes and of text rise
        return place >= 0 and next_id < allowed[place][1]

    def _reader(self, num_images: int) -> "GridGrammar":
        """Reads prompts, which follow the format but none of the wishes for what is written."""
        reader = copy(self)
        reader.size, reader.num_images, reader.stop, reader.whole = self.format.fixed_size, num_images, (), False
        reader.size_digits = (1, 9)
        return reader

    def _opened(self, state: State) -> State:
        """After ``begin``."""
        if self.format.fixed_size is None:
            return state._replace(mode="size", size=())
        return _sized(state, self.format.fixed_size)

    def _size(self, state: State) -> tuple[int, ...]:
        """Of the grid being written, or of the last one: as many sides as the format has."""
        return (state.frames, state.height, state.width)[-self._num_axes :]

    def _after_size_token(self, state: State, next_id: int) -> State:
        """A size ends with ``image``, or with its last side where each is one id."""
        form, ends = self.format, next_id == self.format.image
        size = state.size if ends else (*state.size, next_id)
        if ends or (form.image is None and len(size) == form.num_axes):
            return _sized(state, form.read_size(list(size)))._replace(size=())
        return state._replace(size=size)

    def _after_grid_token(self, state: State) -> State:
        state = state._replace(offset=state.offset + 1)
        if self._expected(state) != FINISHED:
            return state
        num_images = state.num_images + 1
        if num_images == self.num_images and not self.stop:
            return state._replace(mode="done", offset=0, num_images=num_images)
        after = state._replace(mode="text", offset=0, num_images=num_images)
        return after if self.format.begin is not None else self._opened(after)

    def _expected(self, state: State) -> int:
        size = self._size(state)
        if size not in self._bodies:
            self._bodies[size] = _expected_ids(self.format, *size)
        return self._bodies[size][state.offset]

    def _wanted_size(self, state: State) -> tuple[int, ...] | None:
        """The ids that must spell the size, up to ``image``; None where the model chooses, and where nothing is written."""
        size, image = self.size, self.format.image
        if isinstance(size, str):
            size = self._size(state) if state.height else None
        if size is None or self.format.fixed_size is not None:
            return None
        return (*self.format.size_ids(*size), *(() if image is None else (image,)))

    def _allowed_in_size(self, state: State) -> tuple[IdRange, ...]:
        written, form = state.size, self.format
        wanted = self._wanted_size(state)
        if wanted is not None:
            return ((wanted[len(written)], wanted[len(written)] + 1),)
        if form.sides:
            return self._digit if len(written) < form.num_axes or form.image is None else ((form.image, form.image + 1),)
        if form.image is None or (form.times is None and form.num_axes > 1):
            raise ValueError("the format writes no size")
        fewest, most = self.size_digits
        begins = [0, *(place + 1 for place, one in enumerate(written) if one == form.times)]
        sides, digits = len(begins), written[begins[-1] :]
        if not digits:
            return self._digit[1:]  # no leading zero
        after = form.image if sides == form.num_axes or form.times is None else form.times
        end = ((after, after + 1),) if len(digits) >= fewest else ()
        return (*end, *(self._digit if len(digits) < most else ()))


@lru_cache(maxsize=256)
def _expected_ids(form: GridFormat, *size: int) -> tuple[int, ...]:
    """What stands at every offset of an image, up to the first after it."""
    return tuple(form.expected(torch.arange(form.length(*size) + 1), *size).tolist())


def _first(ids: IdRange) -> int:
    return ids[0]


def _sized(state: State, size: tuple[int, ...]) -> State:
    """At the first token of a grid of this size."""
    frames, height, width = (1, 1, *size)[-3:]
    return state._replace(mode="grid", frames=frames, height=height, width=width, offset=0)


def _ranges_without(vocab_size: int, codes: tuple[IdRange, ...], excluded: set[int]) -> tuple[IdRange, ...]:
    """``range(vocab_size)`` less the codes and some other ids, as ranges."""
    single = [(i, i + 1) for i in excluded if i < vocab_size and not any(first <= i < stop for first, stop in codes)]
    edges = [(-1, 0), *sorted([*single, *codes]), (vocab_size, vocab_size)]
    return tuple((a, b) for (_, a), (b, _) in pairwise(edges) if a < b)
