"""Emu3's and Emu3.5's fronts: their prompts and settings, as a ``Pipeline`` uses them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from PIL.Image import Image as PILImage

from mmblocks.generation.grid_grammar import GridGrammar, SizeRule
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.models.emu3.prompts import EMU35_SIZES, EMU35_TASKS, EMU35_UNCONDITIONAL, emu35_template
from mmblocks.prompts.chat_format import ChatFormat
from mmblocks.prompts.fronts import CodeReader, CodesFront, decoded, stop_ids, tokens_of, vocab_size
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, codes, text
from mmblocks.vocabulary.grid_format import EMU3, EMU35, GridFormat
from mmblocks.vocabulary.spelling import Part, Structure, encode_parts

EMU3_CHAT = CodesFront(
    format=ChatFormat(
        begin="<|extra_203|>",
        system="{} ",
        default_system="You are a helpful assistant.",
        user="USER: {}. ",
        assistant="ASSISTANT: {}<|extra_204|>",
        reply="ASSISTANT:",
        pictures_first=True,
        stop=("<|extra_204|>",),
    ),
    codes=EMU3,
    options=Generation(max_tokens=1024, sampling=Sampling(top_k=1024)),
)
"""Emu3-Chat. Several turns, which upstream's processor does not know, stand one after the other.

Source: baaivision/Emu3."""

EMU3_STAGE1 = replace(EMU3_CHAT, format=ChatFormat(begin="<|extra_203|>", pictures_first=True, stop=("<|extra_204|>",)))
"""Emu3-Stage1 about an image: the image and the text, with nothing around them. Source: baaivision/Emu3."""


@dataclass(frozen=True, kw_only=True)
class Emu3GenFront:
    """Emu3-Gen: an image of a text.

    Attributes:
        begin: before the text.
        quality: added to the text.
        negative: the text of the prompt without the condition.
        codes: how the vocabulary writes an image.
        size: (height, width) in pixels, where none is given.
        step: pixels a side of a token.
        options: how codes are sampled, and guided.

    Source: baaivision/Emu3, its example of image generation.

    Examples:
        >>> from mmblocks.models import Emu3GenFront
        >>> front = Emu3GenFront(size=(512, 512))
        >>> front.options.guidance
        3.0
    """

    begin: str = "<|extra_203|>"
    quality: str = " masterpiece, film grained, best quality."
    negative: str = (
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
        "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
    )
    codes: GridFormat = EMU3
    size: tuple[int, int] = (720, 720)
    step: int = 8
    options: Generation = field(default_factory=lambda: Generation(sampling=Sampling(top_k=2048), guidance=3.0))

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of that size."""
        grid = tokens_of(size or self.size, self.step)
        negative = self.negative if negative_prompt is None else negative_prompt
        condition, without = (
            [*spelled(components, Structure(self.begin), words, *more), text(self.codes.head(*grid))]
            for words, more in ((prompt, [self.quality]), (negative, []))
        )
        grammar = GridGrammar(self.codes, size=grid)
        return Request(condition, grammar, self.options, (without,))

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A user's text and the assistant's picture, whose codes are learned, as upstream's fine-tuning has it."""
        if [turn.role for turn in turns] != ["user", "assistant"] or turns[0].pictures or [*map(type, turns[1].content)] == [str]:
            raise ValueError("the messages are not a user's text and the assistant's picture; accepted of this model: these two")
        (picture,) = turns[1].pictures
        grid = CodeReader(components, self.codes).grid(picture)
        return [*spelled(components, Structure(self.begin), turns[0].text), codes(grid, self.codes, target="text")]

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)


@dataclass(frozen=True, kw_only=True)
class Emu35Front:
    """Emu3.5: images of texts and images, and answers that text and images alternate in.

    Attributes:
        task: which of ``EMU35_TASKS`` ``chat`` is for, such as "story", "howto", "explore", "vla".
        codes: how the vocabulary writes an image.
        size: (height, width) in tokens of an image of a text; None lets the model choose.
        step: pixels a side of a token.
        num_images: how many images an answer may hold.
        stop: special tokens that end an answer.

    Source: baaivision/Emu3.5.

    Examples:
        >>> from mmblocks.models import Emu35Front
        >>> front = Emu35Front(task="howto", size=(64, 64))  # images of 1024 x 1024 pixels
        >>> front.codes.codes.num_ids
        131072
    """

    task: str = "story"
    codes: GridFormat = EMU35
    size: tuple[int, int] | None = EMU35_SIZES["default"]
    step: int = 16
    num_images: int = 16
    stop: tuple[str, ...] = ("<|extra_204|>",)

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of that size."""
        grid = self.size if size is None else tokens_of(size, self.step)
        return self._request(components, "t2i", prompt, [], grid, 1, negative_prompt or "")

    def edit(self, components: Components, pictures: Sequence[PILImage], prompt: str, *, size: tuple[int, int] | None) -> Request:
        """An image of the size of the last picture, or of the one given."""
        rule: SizeRule = "reference" if size is None else tokens_of(size, self.step)
        return self._request(components, "x2i", prompt, pictures, rule, 1, "")

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """A story, a guide, or whatever the task is: text and images.

        Raises:
            ValueError: more than the user's one message, which is all that the published templates know.
        """
        if [turn.role for turn in turns] != ["user"]:
            raise ValueError(f"messages are of {[turn.role for turn in turns]}; accepted of this model: one of the user")
        return self._request(components, self.task, turns[0].text, turns[0].pictures, "first", self.num_images, "")

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)

    def _request(
        self,
        components: Components,
        task: str,
        question: str,
        pictures: Sequence[PILImage],
        size: SizeRule | None,
        num_images: int,
        negative: str,
    ) -> Request:
        reader = CodeReader(components, self.codes)
        images = [segment for picture in pictures for segment in reader(picture, None)]
        prompt = self._filled(components, emu35_template(task), question, images)
        without = self._filled(components, EMU35_UNCONDITIONAL, negative, images)
        form = ChatFormat(stop=self.stop)
        stop = () if num_images == 1 else stop_ids(components, form)
        grammar = GridGrammar(
            self.codes,
            size=size,
            num_images=num_images,
            stop=stop,
            vocab_size=vocab_size(components, "text"),
            size_digits=(2, 2),
            structure_in_text=True,
        )
        return Request(prompt, grammar, EMU35_TASKS[task].options, (without,))

    def _filled(self, components: Components, template: str, question: str, images: Sequence[Segment]) -> list[Segment]:
        """A published template with the user's words, as text, and the images."""
        before, _, after = template.partition("<|IMAGE|>")
        sides = [side.split("{question}") for side in (before, after)]
        parts = [[piece for part in side for piece in (question, Structure(part))][1:] for side in sides]
        return [*spelled(components, *parts[0]), *images, *spelled(components, *parts[1])]


def spelled(components: Components, *parts: Part) -> list[Segment]:
    """Parts of a prompt as one segment of ids."""
    ids = [i for own in encode_parts(components.text_tokenizer, parts) for i in own]
    return [text(ids)] if ids else []
