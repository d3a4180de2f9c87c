"""Grammars: which ids may come next. A grammar holds no state; each row's state is a small tuple of its own.

``TextGrammar`` is here, ``GridGrammar`` in ``grid_grammar``, ``VectorGrammar`` in ``continuous``.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from mmblocks.sequence.segments import Codes, Segment, Vectors
from mmblocks.sequence.tokens import Modality
from mmblocks.vocabulary.grid_format import GridFormat

IdRange = tuple[int, int]
"""Ids ``first <= id < stop``."""


class State(NamedTuple):
    """Where a row stands.

    Attributes:
        mode: text, an image's size, its grid, a whole span that nothing opens, or nothing more to write.
        height, width: of the image being written, in tokens; of the last one, where none is; 0 where not yet known.
        offset: tokens written after the id that opens the grid.
        size: ids of the size written so far.
        num_images: images completed.
        frames: of the clip being written; 0 where not yet known.
        parts: where each kind of image stands, in a grammar of several; see ``UnionGrammar``.
    """

    mode: Literal["text", "size", "grid", "span", "done"] = "text"
    height: int = 0
    width: int = 0
    offset: int = 0
    size: tuple[int, ...] = ()
    num_images: int = 0
    frames: int = 0
    parts: "tuple[State, ...]" = ()

    @property
    def in_image(self) -> bool:
        """Whether the next token belongs to an image, its size and row ends included."""
        return self.mode in ("size", "grid")


class Described(NamedTuple):
    """What the token table says of the token that comes next, and which parts write and read it.

    Attributes:
        modality, in_span, grid: for the table.
        head: the head that writes it; None for the head over ids that the options name.
        input: the embedder that reads it; None for that of ids.
        writes: an id, a vector, or a whole span of them.
        size: of the span, in values.
        levels: which levels have a code in this token, where it is one of a ``DepthCodeFormat``.
        format: how a span of codes is written, where ids are given around and between them.
    """

    modality: int
    in_span: bool
    grid: tuple[int, int, int]
    head: str | None = None
    input: str | None = None
    writes: Literal["id", "vector", "span"] = "id"
    size: tuple[int, ...] = ()
    levels: tuple[bool, ...] = ()
    format: GridFormat | None = None

    @property
    def is_visual(self) -> bool:
        """Whether a code or a vector of an image comes next."""
        return self.in_span


TEXT_TOKEN = Described(int(Modality.TEXT), False, (0, 0, 0))
"""Any token that is no part of an image."""


@runtime_checkable
class Grammar(Protocol):
    """Which ids may follow, as pure functions of a row's state."""

    def start(self, prompt: Sequence[int]) -> State:
        """The state after a prompt, before anything is written."""
        ...

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """The ids that may come next."""
        ...

    def describe(self, state: State) -> Described:
        """What the next token is, whichever id it gets."""
        ...

    def advance(self, state: State, next_id: int) -> State:
        """The state after ``next_id``."""
        ...


def describe_all(grammars: Sequence[Grammar], states: Sequence[State]) -> list[Described]:
    """What the next token of each row is; rows of one grammar that stand alike are looked at once."""
    known: dict[tuple[int, State], Described] = {}
    found = []
    for grammar, state in zip(grammars, states, strict=True):
        stands = (id(grammar), state)
        if stands not in known:
            known[stands] = grammar.describe(state)
        found.append(known[stands])
    return found


@runtime_checkable
class ImageGrammar(Grammar, Protocol):
    """A grammar whose rows may hold images."""

    def image(self, state: State, ids: Sequence[int], vectors: Sequence[Tensor], *, input: str) -> Codes | Vectors:
        """A complete image as a segment.

        Args:
            state: of the row, before the image's last token.
            ids: those of the image's grid, where ids were written.
            vectors: those of the image, where vectors were written.
            input: the embedder of ids, for the segment.
        """
        ...


@runtime_checkable
class SpanGrammar(Grammar, Protocol):
    """A grammar whose rows may hold what heads of whole spans write."""

    def span(self, state: State, values: Tensor) -> Segment:
        """What a head has written, as a segment; ``state`` is the row's before it."""
        ...

    def read_back(self, state: State, segment: Segment) -> Sequence[Segment]:
        """What is read in its place."""
        ...


@runtime_checkable
class _SometimesSpans(Protocol):
    """A grammar that says whether its rows hold spans."""

    @property
    def whole(self) -> bool: ...


def may_hold_spans(grammar: Grammar) -> bool:
    """Whether heads of whole spans may write in rows of this grammar."""
    return isinstance(grammar, SpanGrammar) and (not isinstance(grammar, _SometimesSpans) or grammar.whole)


@runtime_checkable
class BoundedGrammar(Grammar, Protocol):
    """A grammar that may know how much a row still writes."""

    def max_tokens(self, state: State) -> int | None:
        """Tokens that are written at most from here on; None where there is no limit."""
        ...


@runtime_checkable
class ChoosingGrammar(Grammar, Protocol):
    """A grammar that knows beforehand among which ids heads will choose, so that others are refused before anything is computed."""

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """From here on: heads, None for the one the options name, and the ids that each may have to choose among."""
        ...


@runtime_checkable
class ImageChoosingGrammar(ChoosingGrammar, Protocol):
    """One that says apart among which ids heads will choose inside of images."""

    def image_choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """As ``choices``, without text."""
        ...


class TextGrammar:
    """Any id until one that stops.

    Args:
        vocab_size: ids 0 ... vocab_size - 1 may come.
        stop: ids that end the row.

    Examples:
        >>> from mmblocks import TextGrammar
        >>> grammar = TextGrammar(vocab_size=16, stop=(9,))
        >>> state = grammar.start()
        >>> grammar.allowed(state)
        ((0, 16),)
        >>> [grammar.advance(state, next_id).mode for next_id in (5, 9)]
        ['text', 'done']
    """

    def __init__(self, vocab_size: int, stop: tuple[int, ...] = ()) -> None:
        self.vocab_size, self.stop = vocab_size, stop

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Text, whatever the prompt says: a stop id in it ended an earlier turn."""
        return State()

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """Every id."""
        return ((0, self.vocab_size),)

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Every id."""
        return [(None, self.allowed(state))]

    def describe(self, state: State) -> Described:
        """Text."""
        return TEXT_TOKEN

    def advance(self, state: State, next_id: int) -> State:
        """Done at a stop id."""
        return state._replace(mode="done") if next_id in self.stop else state
