"""Fronts of the Emu family: answers about images, and images of texts and images.

Messages hold no videos; ``EmuFormat.write`` makes prompts of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from PIL.Image import Image as PILImage
from torch import Generator

from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import GREEDY
from mmblocks.models.emu.format import EMU, EMU_INSTRUCT, EmuFormat
from mmblocks.models.emu.images import EmbeddingImages, EmuGen
from mmblocks.models.emu.model import Emu
from mmblocks.pixels.latent_generator import LatentGenerator
from mmblocks.pixels.state_generator import StateGenerator
from mmblocks.prompts.chat_format import ChatFormat
from mmblocks.prompts.fronts import ReadingFront, check_images, frames_of
from mmblocks.prompts.messages import Content, Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, image

PLAIN = ChatFormat(begin="<s>", picture="[IMG]{}[/IMG]", stop=("</s>",))
"""Text and images with nothing around them, as pretrained models of the family are prompted."""

CHAT = replace(PLAIN, system="{} ", user="[USER]: {}", assistant=" [ASSISTANT]: {}</s>", reply=" [ASSISTANT]:")
"""Conversations of the family's tuned models."""


@dataclass(frozen=True, kw_only=True)
class EmuDrawing:
    """An image by a model of the family and its decoder.

    Attributes:
        front: which knows both.
        prompt: what the image shows.
        size: (height, width) in pixels.
        guidance: of the decoder; 1 for none.

    Raises:
        ValueError: a guidance below 1.
    """

    front: "EmuGenFront"
    prompt: Sample
    size: tuple[int, int]
    guidance: float

    def __post_init__(self) -> None:
        if not self.guidance >= 1:
            raise ValueError(f"guidance is {self.guidance}; accepted: 1 for none, or more")

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of the embeddings that the model regresses."""
        painter = self.front.painter(components)
        settings = {"size": self.size, "guidance": self.guidance}
        (pixels,) = painter([self.prompt], self.front.format, **settings, generator=generator, tokenizer=components.text_tokenizer)
        return frames_of(pixels)


@dataclass(frozen=True, kw_only=True)
class EmuGenFront:
    """Images of texts and images, by a model that regresses embeddings and a decoder of them.

    In the prompt of ``edit``, ``[<IMG_PLH>]`` is where the next picture stands. A prompt without it has all pictures before it.

    Attributes:
        format: ids, and the published settings.
        place: where a picture stands in a prompt.
        max_images: pictures of a prompt; None for any number.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1). Its example of images in context has a guidance of 10.

    Examples:
        >>> from mmblocks.models import EmuGenFront
        >>> EmuGenFront().format.size
        (512, 512)
    """

    format: EmuFormat = EMU
    place: str = "[<IMG_PLH>]"
    max_images: int | None = None

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> EmuDrawing:
        """An image of that size."""
        if negative_prompt:
            raise ValueError("negative_prompt is given; accepted of this model: None, since an empty prompt stands in its place")
        return self._drawing(components, [prompt], size)

    def edit(
        self, components: Components, pictures: Sequence[PILImage], prompt: str, *, size: tuple[int, int] | None
    ) -> EmuDrawing:
        """An image of the published size, or of the one given."""
        check_images([Turn("user", tuple(pictures))], self.max_images)
        words = prompt.split(self.place)
        if len(words) == 1:
            return self._drawing(components, [*pictures, prompt], size)
        if len(words) - 1 != len(pictures):
            accepted = f"none, or {len(pictures)} times {self.place}"
            raise ValueError(
                f"prompt has places for {len(words) - 1} pictures, and there are {len(pictures)}; accepted: {accepted}"
            )
        content: list[Content] = [words[0]]
        for picture, piece in zip(pictures, words[1:], strict=True):
            content += [picture, piece]
        return self._drawing(components, [piece for piece in content if piece != ""], size)

    def painter(self, components: Components) -> EmbeddingImages:
        """The model and its decoder as one."""
        return EmuGen(model=cast(Emu, components.model), decoder=cast(StateGenerator, components.decoder))

    def _drawing(self, components: Components, content: Sequence[Content], size: tuple[int, int] | None) -> EmuDrawing:
        if not isinstance(components.decoder, LatentGenerator):
            found = "none" if components.decoder is None else f"a {type(components.decoder).__name__}"
            raise ValueError(f"decoder is {found}; accepted: the decoder of the model's embeddings, Pipeline(..., decoder=...)")
        size = size or self.format.size
        components.decoder.check_size(*size)
        prompt = PLAIN.prompt([Turn("user", tuple(content))], components.text_tokenizer, _read)
        return EmuDrawing(front=self, prompt=prompt, size=size, guidance=self.format.guidance)


@dataclass(frozen=True, kw_only=True)
class EmuFront(EmuGenFront):
    """Emu as it was pretrained: it goes on with text and images as text, and makes images of them.

    Attributes:
        options: how text is sampled; the authors' code searches with five beams.

    Examples:
        >>> from mmblocks.models import EmuFront
        >>> EmuFront().options.max_tokens
        128
    """

    options: Generation = field(default_factory=lambda: Generation(max_tokens=128, sampling=GREEDY))

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """What follows the messages, with nothing around them."""
        return ReadingFront(format=PLAIN, options=self.options, max_images=self.max_images).chat(components, turns)


@dataclass(frozen=True, kw_only=True)
class EmuInstructFront:
    """Emu-I: conversations about images. A conversation about one image begins with a sentence about it.

    Attributes:
        format: how a conversation is spelled.
        about_image: the sentence; a system message stands in its place.
        options: how answers are sampled; the authors' code searches with five beams.
        max_images: in a conversation; None for any number.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1).

    Examples:
        >>> from mmblocks.models import EmuInstructFront
        >>> EmuInstructFront().format.reply
        ' [ASSISTANT]:'
    """

    format: ChatFormat = CHAT
    about_image: str = EMU_INSTRUCT.system["image"]
    options: Generation = field(default_factory=lambda: Generation(max_tokens=128, sampling=GREEDY))
    max_images: int | None = None

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation."""
        return self._reader(turns).chat(components, turns)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned."""
        return self._reader(turns).training_sample(components, turns)

    def _reader(self, turns: Sequence[Turn]) -> ReadingFront:
        is_about_one = turns[0].role != "system" and sum(len(turn.pictures) for turn in turns) == 1
        begin = f"{self.format.begin}{self.about_image} " if is_about_one else self.format.begin
        return ReadingFront(format=replace(self.format, begin=begin), options=self.options, max_images=self.max_images)


EMU_INSTRUCT_FRONT = EmuInstructFront()
"""Emu-I's."""


def _read(picture: PILImage, target: str | None) -> list[Segment]:
    return [image(picture)]
