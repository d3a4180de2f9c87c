"""Text and continuous images: blocks of vectors that a diffusion or regression head writes one after the other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmblocks.generation.grammar import TEXT_TOKEN, Described, IdRange, State
from mmblocks.sequence.pieces import NO_ID, raster_grid
from mmblocks.sequence.segments import Codes, Segment, Vectors
from mmblocks.sequence.segments import codes as as_codes
from mmblocks.sequence.segments import image as as_image
from mmblocks.sequence.segments import text as as_text
from mmblocks.sequence.segments import vectors as as_vectors
from mmblocks.sequence.tokens import Modality
from mmblocks.vocabulary.depth_code_format import DepthCodeFormat


@dataclass(frozen=True, kw_only=True)
class VectorBlock:
    """How a model writes a continuous image: an id that opens it, its vectors row by row, an id that ends it.

    Attributes:
        begin: text id that opens an image; None where images follow at once, without text.
        end: id that closes it; None where nothing does.
        size: (height, width) of every image, in vectors; also (N,) or (T, height, width).
        head: the head that writes them: one after the other by ``sample(hidden, generator=...)``, (N, D) to (N, D'), or where
            ``whole`` is set all of them as a ``roles.SpanHead`` does.
        input: the embedder that reads them.
        whole: whether the head writes whole spans.
        modality: what they stand for.
        format: of codes with several levels, which a ``DepthCodeHead`` writes as the vectors; None for real vectors.
        order: which vector is written first, which next, and so on, counted row by row; row by row if None.
        read_back: the finished image to what is read in its place, where that is something else; None for the image itself.

    Examples:
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> block = VectorBlock(begin=7, end=8, size=(2, 3), head="latents", input="latents")
        >>> state = VectorGrammar(block, vocab_size=16).start(prompt=[1, block.begin])
        >>> state.mode, state.height, state.width
        ('grid', 2, 3)
    """

    begin: int | None
    end: int | None
    size: tuple[int, ...]
    head: str
    input: str
    whole: bool = False
    modality: int = Modality.VISION
    format: DepthCodeFormat | None = None
    order: tuple[int, ...] | None = None
    read_back: Callable[[Segment], Sequence[Segment]] | None = None


class VectorGrammar:
    """Text and continuous images.

    Args:
        block: how an image is written.
        vocab_size: of the text.
        num_images: how many images may be written; the row ends with the last one if ``stop`` is empty.
        stop: text ids that end a row.
        never: ids that text does not hold, from the first on and before the second; such as codes that nothing writes.

    Raises:
        ValueError: for a size or a number of images below 1.

    Examples:
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> from mmblocks.sequence.segments import NO_ID
        >>> block = VectorBlock(begin=7, end=8, size=(1, 2), head="latents", input="latents")
        >>> grammar = VectorGrammar(block, vocab_size=16)
        >>> state = grammar.start(prompt=[1, 7])
        >>> grammar.describe(state).head, grammar.allowed(state)  # a vector comes, and no id
        ('latents', ())
        >>> state = grammar.advance(grammar.advance(state, NO_ID), NO_ID)
        >>> grammar.allowed(state)  # the id that ends the image
        ((8, 9),)
    """

    def __init__(
        self,
        block: VectorBlock,
        *,
        vocab_size: int,
        num_images: int = 1,
        stop: tuple[int, ...] = (),
        never: IdRange | None = None,
    ) -> None:
        count = math.prod(block.size)
        if not 1 <= len(block.size) <= 3 or min(block.size) < 1:
            raise ValueError(f"size is {block.size}; accepted: one to three sides of at least 1 vector, such as (height, width)")
        if block.order is not None and (sorted(block.order) != list(range(count)) or block.whole or block.format is not None):
            raise ValueError(f"order is {block.order}; accepted: each of 0 to {count - 1} once, and vectors one after the other")
        if num_images < 0 or (num_images == 0 and not stop):
            raise ValueError(f"num_images is {num_images}; accepted: 1 or more, or 0 with stop ids")
        self.block, self.vocab_size, self.num_images, self.stop, self.never = block, vocab_size, num_images, stop, never
        places: list[list[int]] = raster_grid(block.size)[list(block.order) if block.order else slice(None)].tolist()
        self._places = [(t, h, w) for t, h, w in places]
        self._count = count if block.format is None else block.format.length(*block.size)
        present: list[list[bool]] | None = None if block.format is None else block.format.present(*block.size).tolist()
        self._levels = None if present is None else [tuple(one) for one in present]

    def start(self, prompt: Sequence[int] = ()) -> State:
        """In text, or after the id that opens an image where the prompt ends with it."""
        begin = self.block.begin
        return self._opened(State()) if begin is None or (prompt and prompt[-1] == begin) else State()

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """The ids that may come next; none where a vector comes."""
        if state.mode == "grid":
            end = self.block.end
            return () if self._is_vector(state) or end is None else ((end, end + 1),)
        return self._text(state)

    def _text(self, state: State) -> tuple[IdRange, ...]:
        excluded = {self.block.end} if state.num_images < self.num_images else {self.block.end, self.block.begin}
        gaps = [(i, i + 1) for i in excluded if i is not None]
        edges = sorted(gap for gap in [*gaps, *([] if self.never is None else [self.never])] if gap[0] < self.vocab_size)
        ranges = zip([0, *(stop for _, stop in edges)], [*(first for first, _ in edges), self.vocab_size], strict=True)
        return tuple((first, stop) for first, stop in ranges if first < stop)

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Text, as far as it may still come."""
        goes_on = self.block.begin is not None and (state.num_images + 1 < self.num_images or bool(self.stop))
        return [(None, self._text(state))] if state.mode == "text" or (state.mode == "grid" and goes_on) else []

    def image_choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """None: vectors are no ids."""
        return []

    def describe(self, state: State) -> Described:
        """A vector of the image, or text."""
        if state.mode != "grid" or not self._is_vector(state):
            return TEXT_TOKEN
        block = self.block
        if block.whole:
            return Described(int(block.modality), True, (0, 0, 0), block.head, block.input, "span", block.size)
        place = self._places[min(state.offset, len(self._places) - 1)]
        levels = () if self._levels is None else self._levels[state.offset]
        return Described(int(block.modality), True, place, block.head, block.input, "vector", levels=levels)

    def advance(self, state: State, next_id: int) -> State:
        """The state after an id, or after a vector, which has ``NO_ID``.

        Raises:
            ValueError: if the grammar does not allow it here.
        """
        if state.mode == "done":
            return state
        if state.mode == "grid" and self._is_vector(state):
            if next_id != NO_ID:
                raise ValueError(f"id {next_id} cannot stand in an image of vectors")
            state = state._replace(offset=self._count if self.block.whole else state.offset + 1)
            return state if self._is_vector(state) or self.block.end is not None else self._after_image(state)
        if not any(first <= next_id < stop for first, stop in self.allowed(state)):
            raise ValueError(f"id {next_id} cannot stand here; accepted ranges: {self.allowed(state)}")
        if state.mode == "grid":
            return self._after_image(state)
        if next_id in self.stop:
            return state._replace(mode="done")
        return self._opened(state) if next_id == self.block.begin else state

    def max_tokens(self, state: State) -> int | None:
        """Tokens that are written at most from here on; None where text may come."""
        if state.mode == "done":
            return 0
        if self.stop or state.mode != "grid" or state.num_images + 1 < self.num_images:
            return None
        return self._count + (self.block.end is not None) - state.offset

    def image(self, state: State, ids: Sequence[int], vectors: Sequence[Tensor], *, input: str = "text") -> Codes | Vectors:
        """The vectors of a complete image, or its codes of several levels, for the embedder of the ``VectorBlock``."""
        block, made = self.block, torch.stack(list(vectors))
        if block.format is not None:
            return as_codes(block.format.read(made, *block.size), block.format, input=block.input, modality=block.modality)
        if block.order is not None:
            made = torch.empty_like(made).index_copy(0, torch.tensor(block.order, device=made.device), made)
        return as_vectors(made.view(*block.size, -1), input=block.input, modality=block.modality)

    def span(self, state: State, values: Tensor) -> Segment:
        """What a head of whole spans has written, as a segment: pixels, ids, or vectors."""
        block = self.block
        if values.dtype == torch.long and block.modality == Modality.TEXT:
            return as_text(values.tolist(), target=block.head, input=block.input)
        if values.dtype == torch.long:
            grid = values.view(block.size) if len(values) == self._count else values
            return as_codes(grid, target=block.head, input=block.input, modality=block.modality)
        if values.ndim == 3 and len(values) == 3:
            return as_image(values.clamp(0, 1), target=block.head, input=block.input, modality=block.modality)
        grid = values.view(*block.size, -1) if len(values) == self._count else values
        return as_vectors(grid, target=block.head, input=block.input, modality=block.modality)

    def read_back(self, state: State, segment: Segment) -> Sequence[Segment]:
        """What is read in the place of a finished span."""
        return [segment] if self.block.read_back is None else self.block.read_back(segment)

    def _is_vector(self, state: State) -> bool:
        return state.offset < self._count

    def _opened(self, state: State) -> State:
        size = self.block.size
        return state._replace(mode="grid", height=size[-2] if len(size) > 1 else 1, width=size[-1], offset=0)

    def _after_image(self, state: State) -> State:
        num_images = state.num_images + 1
        done = num_images == self.num_images and not self.stop
        after = state._replace(mode="done" if done else "text", offset=0, num_images=num_images)
        return self._opened(after) if self.block.begin is None and not done and num_images < self.num_images else after
