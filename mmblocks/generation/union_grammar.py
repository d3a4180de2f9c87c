"""A grammar of several kinds of images: text, and after whichever opens next an image by that kind's own grammar."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmblocks.generation.grammar import (
    TEXT_TOKEN,
    BoundedGrammar,
    Described,
    Grammar,
    IdRange,
    ImageChoosingGrammar,
    ImageGrammar,
    SpanGrammar,
    State,
)
from mmblocks.sequence.segments import Codes, Segment, Vectors


class UnionGrammar:
    """Text and images of several kinds: two formats of codes, codes and vectors, images and sound.

    In text an id may come that every kind allows there; one that opens an image of some kind is text to the others. A row ends at a
    kind's stop id, or, where no kind has one, when none allows another image.

    Args:
        kinds: by name, the grammar of text and images of that kind. Each counts its own images, and must know all ids as text that
            are the codes of others: see ``vocab_size`` of ``GridGrammar``.

    Raises:
        ValueError: no kinds.

    Examples:
        >>> from mmblocks import GridFormat, GridGrammar
        >>> from mmblocks.generation import UnionGrammar, VectorBlock, VectorGrammar
        >>> from mmblocks.vocabulary import CodeIds
        >>> form = GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(8,), first=10), fixed_size=(1, 2))
        >>> block = VectorBlock(begin=3, end=4, size=(1, 2), head="latents", input="latents")
        >>> kinds = {"codes": GridGrammar(form, vocab_size=18), "latents": VectorGrammar(block, vocab_size=18)}
        >>> grammar = UnionGrammar(kinds)
        >>> state = grammar.start()
        >>> grammar.allowed(state)  # text, and what opens either kind of image; no codes, and nothing that closes
        ((0, 2), (3, 4), (5, 10))
        >>> grammar.describe(grammar.advance(state, 3)).head, grammar.allowed(grammar.advance(state, 1))
        ('latents', ((10, 18),))
    """

    def __init__(self, kinds: Mapping[str, Grammar]) -> None:
        if not kinds:
            raise ValueError("kinds is empty; accepted: at least one grammar by name")
        self.kinds = dict(kinds)
        self._grammars = tuple(kinds.values())

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Where a prompt ends."""
        return self._state(tuple(grammar.start(prompt) for grammar in self._grammars))

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """Those of the kind whose image is being written; in text those that all kinds allow."""
        active = _active(state)
        return self._text(state) if active is None else self._grammars[active].allowed(state.parts[active])

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Codes and digits of all kinds, and the text that all of them allow, as far as they may still come."""
        if state.mode == "done":
            return []
        text = self._text(state) if self._goes_on(state) else ()
        return [*self.image_choices(state), *([(None, text)] if text else [])]

    def image_choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Codes and digits of all kinds."""
        active = _active(state)
        found = []
        for index, (grammar, part) in enumerate(zip(self._grammars, state.parts, strict=True)):
            if isinstance(grammar, ImageChoosingGrammar) and (index == active or self._goes_on(state)):
                found += grammar.image_choices(part)
        return found

    def _goes_on(self, state: State) -> bool:
        """Whether text may come, at once or after the image that is being written."""
        active = _active(state)
        if active is None:
            return state.mode == "text"
        grammar, part = self._grammars[active], state.parts[active]
        if any(each.mode != "done" for index, each in enumerate(state.parts) if index != active):
            return True
        return not isinstance(grammar, BoundedGrammar) or grammar.max_tokens(part) is None

    def _text(self, state: State) -> tuple[IdRange, ...]:
        ranges: tuple[IdRange, ...] | None = None
        for grammar, part in zip(self._grammars, state.parts, strict=True):
            own = grammar.allowed(part._replace(mode="text"))
            ranges = own if ranges is None else _both(ranges, own)
        return ranges or ()

    def describe(self, state: State) -> Described:
        """As the kind's grammar does whose image is being written; text elsewhere."""
        active = _active(state)
        return TEXT_TOKEN if active is None else self._grammars[active].describe(state.parts[active])

    def advance(self, state: State, next_id: int) -> State:
        """The state after ``next_id``.

        Raises:
            ValueError: if the grammar does not allow that id here.
        """
        if state.mode == "done":
            return state
        active = _active(state)
        if active is None and not any(first <= next_id < stop for first, stop in self.allowed(state)):
            raise ValueError(f"id {next_id} cannot stand in text; accepted ranges: {self.allowed(state)}")
        parts = list(state.parts)
        stopped = False
        for index, grammar in enumerate(self._grammars):
            if active is None and parts[index].mode == "text":
                parts[index] = grammar.advance(parts[index], next_id)
                stopped = stopped or parts[index].mode == "done"
            elif active == index:
                parts[index] = grammar.advance(parts[index], next_id)
        made = self._state(tuple(parts))
        return made._replace(mode="done") if stopped else made

    def max_tokens(self, state: State) -> int | None:
        """Tokens that are written at most from here on; None where text may come."""
        if state.mode == "done":
            return 0
        active = _active(state)
        others_done = all(part.mode == "done" for index, part in enumerate(state.parts) if index != active)
        if active is None or not others_done:
            return None
        grammar = self._grammars[active]
        return grammar.max_tokens(state.parts[active]) if isinstance(grammar, BoundedGrammar) else None

    def image(self, state: State, ids: Sequence[int], vectors: Sequence[Tensor], *, input: str) -> Codes | Vectors:
        """A complete image, as its kind makes it."""
        grammar, part = self._writing(state)
        if not isinstance(grammar, ImageGrammar):
            raise TypeError(f"{type(grammar).__name__} wrote an image and has no method image; accepted: an ImageGrammar")
        return grammar.image(part, ids, vectors, input=input)

    def span(self, state: State, values: Tensor) -> Segment:
        """What a head of whole spans has written, as its kind makes it."""
        grammar, part = self._writing(state)
        return _spans(grammar).span(part, values)

    def read_back(self, state: State, segment: Segment) -> Sequence[Segment]:
        """What is read in its place."""
        grammar, part = self._writing(state)
        return _spans(grammar).read_back(part, segment)

    def _writing(self, state: State) -> tuple[Grammar, State]:
        active = _active(state)
        if active is None:
            raise ValueError(f"state is {state.mode!r}; accepted: one inside an image")
        return self._grammars[active], state.parts[active]

    def _state(self, parts: tuple[State, ...]) -> State:
        """The state of the row: that of the kind that is being written, and all kinds' own."""
        num_images = sum(part.num_images for part in parts)
        whole = State(mode="done" if all(part.mode == "done" for part in parts) else "text", parts=parts, num_images=num_images)
        active = _active(whole)
        return whole if active is None else parts[active]._replace(parts=parts, num_images=num_images)


def _active(state: State) -> int | None:
    """Which kind of image is being written."""
    return next((index for index, part in enumerate(state.parts) if part.in_image), None)


def _spans(grammar: Grammar) -> SpanGrammar:
    if not isinstance(grammar, SpanGrammar):
        raise TypeError(f"{type(grammar).__name__} describes a span and has no methods span and read_back; accepted: a SpanGrammar")
    return grammar


def _both(first: tuple[IdRange, ...], second: tuple[IdRange, ...]) -> tuple[IdRange, ...]:
    """The ids that lie in both."""
    pairs = sorted((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return tuple((start, stop) for start, stop in pairs if start < stop)
