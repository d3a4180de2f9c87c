"""What baaivision's own code does differently when Emu3 and Emu3.5 generate, by name; for comparison with its output."""

from collections.abc import Sequence

from mmblocks.generation.grammar import Described, GridGrammar, IdRange, SizeRule, State
from mmblocks.grid_format import EMU3, EMU35, GridFormat


class Emu3PrefixGrammar(GridGrammar):
    """Emu3's prefix constraint: one image of a known size, then the end of the text, then padding without end.

    Its test for row ends comes first and holds behind the image too: at width 1 the row end takes the place of the id that
    ends the image, at width 2 that of the end of the text, and wider ones stand in the padding. ``GridGrammar`` writes
    every id and then stops.

    Args:
        size: (height, width) in tokens.
        eos, pad: the ids behind the image.
        format: ids and order of the codes.

    Source: ``Emu3PrefixConstrainedLogitsHelper`` (baaivision/Emu3).
    """

    def __init__(self, size: tuple[int, int], *, eos: int, pad: int, format: GridFormat = EMU3) -> None:
        super().__init__(format, size=size)
        self.height, self.width = size
        self.eos, self.pad = eos, pad

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Behind the prompt's first ``image`` id.

        Raises:
            ValueError: if the prompt has none.
        """
        if self.format.image is None or self.format.image not in prompt:
            raise ValueError(f"prompt holds no id {self.format.image}; accepted: a prompt that opens an image")
        written = len(prompt) - 1 - list(prompt).index(self.format.image)
        return State("grid", self.height, self.width, written)

    def allowed(self, state: State) -> tuple[IdRange, ...]:
        """A row end at each multiple of the width and one; else the closing ids at their places; else any code."""
        place, stride = state.offset + 1, self.width + 1
        row_end = 0 if self.format.row_end is None else self.format.row_end
        behind = [*self.format.closing, self.eos]
        past = place - self.height * stride
        if place % stride == 0:
            only = row_end
        elif past <= 0:
            return self._codes
        else:
            only = behind[past - 1] if past <= len(behind) else self.pad
        return ((only, only + 1),)

    def describe(self, state: State) -> Described:
        """As in an image of this size; text behind it."""
        if state.offset >= self.format.length(self.height, self.width):
            state = state._replace(mode="text")
        return super().describe(state)

    def advance(self, state: State, next_id: int) -> State:
        """One token on; there is no end.

        Raises:
            ValueError: if that id may not stand here.
        """
        if not any(first <= next_id < stop for first, stop in self.allowed(state)):
            raise ValueError(f"id {next_id} cannot stand here; accepted ranges: {self.allowed(state)}")
        return state._replace(offset=state.offset + 1)


def emu35_published_grammar(
    *,
    size: SizeRule = "first",
    num_images: int = 1000,
    stop: tuple[int, ...] = (151850,),
    format: GridFormat = EMU35,
) -> GridGrammar:
    """As Emu3.5's code constrains itself.

    Sizes that the model writes have exactly two digits each, every later image takes the first one's size (that of the last
    reference image, if the prompt holds one), and text may hold the ids of rows and closings.

    Args:
        size: a fixed (height, width), or "first" as upstream has it.
        num_images: more than there is room for, by default.
        stop: ``<|extra_204|>``.
        format: ids and order of the codes.

    Source: baaivision/Emu3.5.
    """
    return GridGrammar(format, size=size, num_images=num_images, stop=stop, size_digits=(2, 2), structure_in_text=True)
