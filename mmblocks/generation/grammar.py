"""Grammars: which ids may come next. A grammar holds no state; each row's state is a small tuple of its own.

``GridGrammar`` writes text and images in a ``GridFormat``: where it stands inside an image follows from the image's
size and how many tokens have been written, so row ends and closings are never left to chance.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch

from mmblocks.grid_format import ANY_CODE, FINISHED, GridFormat
from mmblocks.tokens import Modality

IdRange = tuple[int, int]
"""Ids ``first <= id < stop``."""


class State(NamedTuple):
    """Where a row stands.

    Attributes:
        mode: text, an image's size, its grid, or nothing more to write.
        height, width: of the image being written, in tokens; 0 where not yet known.
        offset: tokens written behind the id that opens the grid.
        size: ids of the size written so far.
        num_images: images completed.
    """

    mode: Literal["text", "size", "grid", "done"] = "text"
    height: int = 0
    width: int = 0
    offset: int = 0
    size: tuple[int, ...] = ()
    num_images: int = 0


class Described(NamedTuple):
    """What the token table says of the id that comes next."""

    modality: int
    in_span: bool
    grid: tuple[int, int, int]


TEXT_TOKEN = Described(int(Modality.TEXT), False, (0, 0, 0))
"""Any token that is no part of an image."""


@runtime_checkable
class Grammar(Protocol):
    """Which ids may follow, as pure functions of a row's state."""

    def start(self, prompt: Sequence[int]) -> State:
        """The state behind a prompt, before anything is written."""
        ...

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """The ids that may come next."""
        ...

    def describe(self, state: State) -> Described:
        """What the next token is, whichever id it gets."""
        ...

    def advance(self, state: State, next_id: int) -> State:
        """The state behind ``next_id``."""
        ...


class TextGrammar:
    """Any id until one that stops.

    Args:
        vocab_size: ids 0 ... vocab_size - 1 may come.
        stop: ids that end the row.
    """

    def __init__(self, vocab_size: int, stop: tuple[int, ...] = ()) -> None:
        self.vocab_size, self.stop = vocab_size, stop

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Text, whatever the prompt says: a stop id in it ended an earlier turn."""
        return State()

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """Every id."""
        return ((0, self.vocab_size),)

    def describe(self, state: State) -> Described:
        """Text."""
        return TEXT_TOKEN

    def advance(self, state: State, next_id: int) -> State:
        """Done at a stop id."""
        return state._replace(mode="done") if next_id in self.stop else state


class GridGrammar:
    """Text and images in a ``GridFormat``.

    Args:
        format: how the vocabulary writes an image. Ids below its ``first_code`` are text, but for its own structure.
        size: (height, width) in tokens of every image, or None to let the model write the size (1 to 999 each).
        num_images: how many images may be written; the row ends with the last one if ``stop`` is empty.
        stop: text ids that end a row.

    Raises:
        ValueError: for a size or a number of images below 1.
    """

    def __init__(
        self,
        format: GridFormat,
        *,
        size: tuple[int, int] | None = None,
        num_images: int = 1,
        stop: tuple[int, ...] = (),
    ) -> None:
        if size is not None and min(size) < 1:
            raise ValueError(f"size is {size}; accepted: height and width of at least 1 token")
        if num_images < 0 or (num_images == 0 and not stop):
            raise ValueError(f"num_images is {num_images}; accepted: 1 or more, or 0 with stop ids")
        self.format, self.size, self.num_images, self.stop = format, size, num_images, stop
        structure = {format.image, format.row_end, *format.closing}
        self._text = _ranges_without(format.first_code, structure)
        self._text_only = _ranges_without(format.first_code, structure | {format.begin})
        self._digit = tuple((digit, digit + 1) for digit in format.digits)

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Where a prompt ends. It may hold images of any size, which are not counted, and stop ids of earlier turns.

        Raises:
            ValueError: if its image tokens stand in no order that the format knows, or begin an image of another size.
        """
        state, reader = State(), GridGrammar(self.format, num_images=len(prompt) + 1)
        for next_id in prompt:
            state = reader.advance(state, next_id)
        if state.mode == "size" and self.size is not None:
            wanted = (*self.format.size_ids(*self.size), self.format.image)
            if state.size != wanted[: len(state.size)]:
                raise ValueError(f"prompt begins an image whose size starts with ids {state.size}; accepted: {wanted}")
        return state._replace(num_images=0)

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """The ids that may come next."""
        match state.mode:
            case "text":
                return self._text if state.num_images < self.num_images else self._text_only
            case "size":
                return self._allowed_in_size(state.size)
            case "grid":
                expected = self._expected(state)
                if expected == ANY_CODE:
                    return ((self.format.first_code, self.format.first_code + self.format.num_codes),)
                return ((expected, expected + 1),)
            case _:
                return self._text

    def describe(self, state: State) -> Described:
        """A visual token where a code comes next, text elsewhere."""
        if state.mode != "grid" or self._expected(state) != ANY_CODE:
            return TEXT_TOKEN
        row, column = self.format.place(state.offset, state.width)
        return Described(int(Modality.VISION), True, (0, row, column))

    def advance(self, state: State, next_id: int) -> State:
        """The state behind ``next_id``.

        Raises:
            ValueError: if the grammar does not allow that id here.
        """
        if state.mode == "done":
            return state
        if not any(first <= next_id < stop for first, stop in self.allowed(state)):
            where = "text" if state.mode == "text" else f"the {state.mode} of an image"
            raise ValueError(f"id {next_id} cannot stand in {where}; accepted ranges: {self.allowed(state)}")
        match state.mode:
            case "text" if next_id in self.stop:
                return state._replace(mode="done")
            case "text":
                return state._replace(mode="size", size=()) if next_id == self.format.begin else state
            case "size" if next_id == self.format.image:
                height, width = self.format.read_size(list(state.size))
                return state._replace(mode="grid", height=height, width=width, offset=0)
            case "size":
                return state._replace(size=(*state.size, next_id))
            case _:
                return self._behind_grid_token(state)

    def _behind_grid_token(self, state: State) -> State:
        state = state._replace(offset=state.offset + 1)
        if self._expected(state) != FINISHED:
            return state
        num_images = state.num_images + 1
        done = num_images == self.num_images and not self.stop
        return State("done" if done else "text", num_images=num_images)

    def _expected(self, state: State) -> int:
        return _expected_ids(self.format, state.height, state.width)[state.offset]

    def _allowed_in_size(self, written: tuple[int, ...]) -> tuple[IdRange, ...]:
        form = self.format
        if self.size is not None:
            wanted = (*form.size_ids(*self.size), form.image)[len(written)]
            return ((wanted, wanted + 1),)
        has_times = form.times in written
        number = written[written.index(form.times) + 1 :] if has_times else written
        if not number:
            return self._digit[1:]  # no leading zero
        behind = form.image if has_times else form.times
        return ((behind, behind + 1), *(self._digit if len(number) < 3 else ()))


@lru_cache(maxsize=256)
def _expected_ids(form: GridFormat, height: int, width: int) -> tuple[int, ...]:
    """What stands at every offset of an image, up to the first behind it."""
    return tuple(form.expected(torch.arange(form.length(height, width) + 1), height, width).tolist())


def _ranges_without(stop: int, excluded: set[int]) -> tuple[IdRange, ...]:
    """``range(stop)`` less some ids, as ranges."""
    edges = [-1, *sorted(i for i in excluded if i < stop), stop]
    return tuple((a + 1, b) for a, b in pairwise(edges) if a + 1 < b)
