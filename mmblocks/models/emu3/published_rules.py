"""What baaivision's own code does differently when Emu3 and Emu3.5 generate, by name; for comparison with its output."""

from collections.abc import Sequence

from torch import Tensor

from mmblocks.generation.grammar import Described, IdRange, State
from mmblocks.generation.grid_grammar import GridGrammar, SizeRule
from mmblocks.generation.guidance import ClassifierFree, Guidance, ThreeWay
from mmblocks.vocabulary.grid_format import EMU3, EMU35, GridFormat


class Emu3PrefixGrammar(GridGrammar):
    """Emu3's prefix constraint: one image of a known size, then the end of the text, then padding without end.

    Its test for row ends comes first and holds after the image too: at width 1 the row end takes the place of the id that
    ends the image, at width 2 that of the end of the text, and wider ones stand in the padding. ``GridGrammar`` writes
    every id and then stops.

    Args:
        size: (height, width) in tokens.
        eos, pad: the ids after the image.
        format: ids and order of the codes.

    Source: ``Emu3PrefixConstrainedLogitsHelper`` (baaivision/Emu3).
    """

    def __init__(self, size: tuple[int, int], *, eos: int, pad: int, format: GridFormat = EMU3) -> None:
        super().__init__(format, size=size)
        self.height, self.width = size
        self.eos, self.pad = eos, pad

    def start(self, prompt: Sequence[int] = ()) -> State:
        """After the prompt's first ``image`` id.

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
        after = [*self.format.closing, self.eos]
        past = place - self.height * stride
        if place % stride == 0:
            only = row_end
        elif past <= 0:
            return self._codes
        else:
            only = after[past - 1] if past <= len(after) else self.pad
        return ((only, only + 1),)

    def describe(self, state: State) -> Described:
        """As in an image of this size; text after it."""
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

    def max_tokens(self, state: State) -> int | None:
        """None: there is no end."""
        return None


class Emu35PublishedGrammar(GridGrammar):
    """As Emu3.5's code constrains itself.

    Sizes that the model writes have exactly two digits each, every later image takes the first one's size, and text may hold the
    ids of rows and closings. Where the prompt without the condition holds reference images, the last one's size is forced.

    Args:
        size: a fixed (height, width); None leaves it to the references, or to the model.
        unconditional: ids of the prompt without the condition, which upstream searches for references; None: the prompt itself.
        same_size: upstream's ``force_same_image_size``, which its script turns off for several references: without it the last
            reference's size goes before ``size``.
        num_images: more than there is room for, by default.
        stop: ``<|extra_204|>``.
        format: ids and order of the codes.

    Raises:
        ValueError: as ``GridGrammar``.

    Source: baaivision/Emu3.5, ``UnbatchedClassifierFreeGuidanceLogitsForVisualTokenProcessor``.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        unconditional: Sequence[int] | None = None,
        same_size: bool = True,
        num_images: int = 1000,
        stop: tuple[int, ...] = (151850,),
        format: GridFormat = EMU35,
    ) -> None:
        rule: SizeRule = "first" if size is None else size
        super().__init__(format, size=rule, num_images=num_images, stop=stop, size_digits=(2, 2), structure_in_text=True)
        references = None if unconditional is None else _images(unconditional, format)
        self.prompt_counts = references is None
        if references and (size is None or not same_size):
            self.size = (references[-1].shape[0], references[-1].shape[1])

    def start(self, prompt: Sequence[int] = ()) -> State:
        """Where a prompt ends; its images count for the size only where no prompt without the condition was given."""
        state = super().start(prompt)
        return state if self.prompt_counts or state.in_image else state._replace(height=0, width=0)


def _images(ids: Sequence[int], format: GridFormat) -> list[Tensor]:
    return [piece for piece in format.read(list(ids)) if isinstance(piece, Tensor)]


def emu35_published_guidance(
    unconditional_type: str, *, scale: float, image_scale: float = 1.0, differential: bool = True
) -> Guidance:
    """The guidance of an Emu3.5 config.

    Args:
        unconditional_type: "no_text", or "no_text_img_cfg" for three streams.
        scale: ``classifier_free_guidance``.
        image_scale: ``image_cfg_scale``.
        differential: as in the class that upstream's scripts use, ``...WithDifferentialTopKProcessor``. It takes
            ``image_cfg_scale`` and does not hand it on, so that it counts as 1. False: the class that it builds on.

    Raises:
        ValueError: any other type, for which upstream has no formula either.
    """
    match unconditional_type:
        case "no_text":
            return ClassifierFree(scale=scale, images_only=True)
        case "no_text_img_cfg":
            return ThreeWay(scale=scale, image_scale=1.0 if differential else image_scale)
        case _:
            raise ValueError(f"unconditional_type is {unconditional_type!r}; accepted: 'no_text', 'no_text_img_cfg'")
