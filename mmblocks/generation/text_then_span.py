"""Text, and then a whole span: what a model thinks, and the image that it writes after it."""

from collections.abc import Sequence

from torch import Tensor

from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.generation.grammar import TEXT_TOKEN, Described, IdRange, State
from mmblocks.sequence.pieces import NO_ID
from mmblocks.sequence.segments import Segment


class TextThenSpan:
    """Any text up to an id that ends it, then one whole span, which nothing opens.

    Unlike the ``begin`` of a ``VectorBlock`` the id belongs to the text: streams of guidance that skip the text skip it too.

    Args:
        block: how the span is written: a ``whole`` one without ``begin`` and ``end``.
        vocab_size: of the text.
        end: the id that ends the text.
        max_text: ids of the text at most, without ``end``, which then comes; None for no limit.

    Raises:
        ValueError: another block, an ``end`` that is no id, or a limit below 0.

    Source: how BAGEL thinks before it draws (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> from mmblocks.generation import TextThenSpan, VectorBlock
        >>> block = VectorBlock(begin=None, end=None, size=(2, 3), head="image", input="latents", whole=True)
        >>> grammar = TextThenSpan(block, vocab_size=16, end=9, max_text=2)
        >>> state = grammar.advance(grammar.advance(grammar.start(), 5), 6)
        >>> grammar.allowed(state)  # the text is as long as it may be
        ((9, 10),)
        >>> state = grammar.advance(state, 9)
        >>> grammar.describe(state).writes, grammar.max_tokens(state)
        ('span', 6)
    """

    def __init__(self, block: VectorBlock, *, vocab_size: int, end: int, max_text: int | None = None) -> None:
        if not block.whole or block.begin is not None or block.end is not None:
            found = f"whole {block.whole}, begin {block.begin}, end {block.end}"
            raise ValueError(f"block has {found}; accepted: a whole span, with nothing around it")
        if not 0 <= end < vocab_size:
            raise ValueError(f"end is {end}; accepted: an id of the vocabulary, 0 to {vocab_size - 1}")
        if max_text is not None and max_text < 0:
            raise ValueError(f"max_text is {max_text}; accepted: 0 or more, or None")
        self.block, self.vocab_size, self.end, self.max_text = block, vocab_size, end, max_text
        self._span = VectorGrammar(block, vocab_size=vocab_size)

    def start(self, prompt: Sequence[int] = ()) -> State:
        """In text, whatever the prompt says."""
        return State()

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """Every id; ``end`` alone where the text is as long as it may be, and none where the span comes."""
        if state.mode == "span":
            return ()
        return ((self.end, self.end + 1),) if state.offset == self.max_text else ((0, self.vocab_size),)

    def choices(self, state: State) -> list[tuple[str | None, tuple[IdRange, ...]]]:
        """Every id, in text."""
        return [(None, ((0, self.vocab_size),))] if state.mode == "text" else []

    def describe(self, state: State) -> Described:
        """The span, or text."""
        return self._span.describe(self._span.start()) if state.mode == "span" else TEXT_TOKEN

    def advance(self, state: State, next_id: int) -> State:
        """The state after an id of the text, or after the span, which has ``NO_ID``.

        Raises:
            ValueError: if the grammar does not allow it here.
        """
        if state.mode == "done":
            return state
        if state.mode == "span":
            if next_id != NO_ID:
                raise ValueError(f"id {next_id} cannot stand in a span of vectors")
            return state._replace(mode="done", num_images=1)
        if not any(first <= next_id < stop for first, stop in self.allowed(state)):
            raise ValueError(f"id {next_id} cannot stand here; accepted ranges: {self.allowed(state)}")
        if next_id != self.end:
            return state._replace(offset=state.offset + 1)
        size = self.block.size
        return state._replace(mode="span", height=size[-2] if len(size) > 1 else 1, width=size[-1], offset=0)

    def max_tokens(self, state: State) -> int | None:
        """Tokens that are written at most from here on; None where the text has no limit."""
        if state.mode == "done":
            return 0
        span = self._span.max_tokens(self._span.start())
        if state.mode == "span" or span is None:
            return span
        return None if self.max_text is None else self.max_text - state.offset + 1 + span

    def span(self, state: State, values: Tensor) -> Segment:
        """What a head of whole spans has written, as a segment."""
        return self._span.span(state, values)

    def read_back(self, state: State, segment: Segment) -> Sequence[Segment]:
        """What is read in the place of the finished span."""
        return self._span.read_back(state, segment)
