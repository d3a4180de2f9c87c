"""Fronts of which a family's own is made: conversations about images, and codes in and out.

A front is data: published fronts are instances of these classes, or of a family's own beside its model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from PIL.Image import Image as PILImage
from torch import Tensor

from mmblocks.generation.grammar import Grammar, TextGrammar
from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import GREEDY
from mmblocks.prompts.chat_format import ChatFormat
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, ImageTokenizer, Request, multimodal
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Codes, Segment, Vectors, codes, image
from mmblocks.sequence.segments import Image as ImageSegment
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pictures import image_of
from mmblocks.vocabulary.grid_format import GridFormat
from mmblocks.vocabulary.spelling import special_id


@dataclass(frozen=True, kw_only=True)
class ReadingFront:
    """Conversations with a model that reads images through an embedder, and answers with text.

    Attributes:
        format: how a conversation is spelled.
        options: how answers are sampled.
        input: the embedder of images.
        bidirectional: whether an image's tokens see each other.
        head: the head of text.
        max_images: in a conversation; None for any number.

    Examples:
        >>> from mmblocks.prompts import ChatFormat, ReadingFront
        >>> front = ReadingFront(format=ChatFormat(user="USER: {}", reply=" ASSISTANT:", stop=("<end>",)))
    """

    format: ChatFormat
    options: Generation = field(default_factory=lambda: Generation(max_tokens=1024, sampling=GREEDY))
    input: str = "vision"
    bidirectional: bool = False
    head: str = "text"
    max_images: int | None = None

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation."""
        self._check(turns)
        prompt = self.format.prompt(turns, components.text_tokenizer, self._read)
        return Request(prompt, text_grammar(components, self.format, self.head), self.options)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned."""
        self._check(turns)
        if any(turn.pictures for turn in turns if turn.role == "assistant"):
            raise ValueError("an answer holds a picture; accepted: text, which is all that this model writes")
        return self.format.sample(turns, components.text_tokenizer, self._read, target=self.head)

    def _read(self, picture: PILImage, target: str | None) -> list[Segment]:
        return [image(picture, input=self.input, bidirectional=self.bidirectional)]

    def _check(self, turns: Sequence[Turn]) -> None:
        check_images(turns, self.max_images)


@dataclass(frozen=True, kw_only=True)
class CodesFront:
    """Conversations with a model that reads images as codes of its vocabulary, and answers with text, and images if it may.

    Attributes:
        format: how a conversation is spelled.
        codes: how the vocabulary writes an image.
        options: how answers are sampled.
        num_images: how many images an answer may hold.
        head: the head of text and codes.
        max_images: in a conversation; None for any number.

    Examples:
        >>> from mmblocks.vocabulary import EMU3
        >>> from mmblocks.prompts import ChatFormat, CodesFront
        >>> front = CodesFront(format=ChatFormat(user="USER: {}", reply=" ASSISTANT:", stop=("<end>",)), codes=EMU3)
        >>> front.num_images  # it reads images, and answers with text
        0
    """

    format: ChatFormat
    codes: GridFormat
    options: Generation = field(default_factory=lambda: Generation(max_tokens=1024, sampling=GREEDY))
    num_images: int = 0
    head: str = "text"
    max_images: int | None = None

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation."""
        check_images(turns, self.max_images)
        stop = stop_ids(components, self.format)
        size = vocab_size(components, self.head)
        grammar = GridGrammar(self.codes, num_images=self.num_images, stop=stop, vocab_size=size)
        prompt = self.format.prompt(turns, components.text_tokenizer, CodeReader(components, self.codes))
        return Request(prompt, grammar, self.options)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned, images in them too."""
        check_images(turns, self.max_images)
        return self.format.sample(turns, components.text_tokenizer, CodeReader(components, self.codes), target=self.head)

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)


@dataclass(frozen=True)
class CodeReader:
    """Pictures to codes.

    Attributes:
        components: with an image tokenizer.
        format: how the vocabulary writes an image.
    """

    components: Components
    format: GridFormat

    def __call__(self, picture: PILImage, target: str | None) -> list[Segment]:
        """The codes; where they are learned, with all that stands around them."""
        return [codes(self.grid(picture), self.format, target=target, structure=target is not None)]

    @torch.no_grad()
    def grid(self, picture: PILImage) -> Tensor:
        """The codes alone."""
        tokenizer = image_tokenizer_of(self.components)
        pixels = tokenizer.preprocess(picture).to(_device(self.components))
        ids = tokenizer.encode(pixels[None]).ids
        if ids is None:
            raise TypeError(f"{type(tokenizer).__name__} makes latents; accepted: an image tokenizer that makes codes")
        return ids[0].cpu()


@dataclass(frozen=True)
class LatentReader:
    """Pixels to latents, the mode where there is a variance.

    Attributes:
        components: with an image tokenizer that makes latents.
    """

    components: Components

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "3 H W"]) -> Float[Tensor, "h w C"]:
        """The latents of one image."""
        tokenizer = image_tokenizer_of(self.components)
        found = tokenizer.encode(pixels[None].to(_device(self.components)))
        if found.ids is not None:
            raise TypeError(f"{type(tokenizer).__name__} makes codes; accepted: an image tokenizer that makes latents")
        return found.z[0].float().cpu()


def image_tokenizer_of(components: Components) -> ImageTokenizer:
    """The image tokenizer.

    Raises:
        ValueError: there is none.
    """
    if components.image_tokenizer is None:
        accepted = "Pipeline(..., image_tokenizer=...)"
        raise ValueError(f"the pipeline has no image_tokenizer, and its model reads or writes what one makes; accepted: {accepted}")
    return cast(ImageTokenizer, components.image_tokenizer)


@torch.no_grad()
def decoded(components: Components, segment: Segment) -> list[PILImage]:
    """The picture, or the frames, that a segment's codes, latents or pixels stand for."""
    if isinstance(segment, ImageSegment):
        return frames_of(segment.pixels)
    tokenizer = image_tokenizer_of(components)
    if isinstance(segment, Vectors):
        return frames_of(tokenizer.decode(Latents(z=segment.values.to(_device(components))[None]))[0])
    if not isinstance(segment, Codes):
        raise TypeError(f"{type(segment).__name__} was written; accepted of this front: codes or latents")
    return frames_of(tokenizer.decode(segment.grid.to(_device(components))[None])[0])


def frames_of(pixels: Tensor) -> list[PILImage]:
    """(3, H, W) or, of a clip, (3, T, H, W), as pictures."""
    return [image_of(frame) for frame in (pixels[None] if pixels.ndim == 3 else pixels.transpose(0, 1))]


def text_grammar(components: Components, form: ChatFormat, head: str = "text") -> Grammar:
    """Text until a token that stops."""
    return TextGrammar(vocab_size(components, head), stop_ids(components, form))


def stop_ids(components: Components, form: ChatFormat) -> tuple[int, ...]:
    """The ids of the tokens that stop an answer."""
    return tuple(special_id(components.text_tokenizer, name) for name in form.stop)


def vocab_size(components: Components, head: str) -> int:
    """Ids that a head writes."""
    return int(multimodal(components).outputs[head].vocab_size)  # type: ignore[union-attr]  # a head over ids


def check_images(turns: Sequence[Turn], most: int | None) -> None:
    """Refuses more images than a model takes.

    Raises:
        ValueError: there are more.
    """
    count = sum(len(turn.pictures) for turn in turns)
    if most is not None and count > most:
        raise ValueError(f"the messages hold {count} images; accepted: {most} at most")


def tokens_of(size: tuple[int, int], step: int) -> tuple[int, int]:
    """A size in pixels as one in tokens.

    Raises:
        ValueError: sides that are no multiples of a token's.
    """
    height, width = size
    if height % step or width % step:
        near = tuple(max(round(side / step), 1) * step for side in size)
        raise ValueError(f"size is {height}x{width} pixels; accepted: multiples of {step}, such as {near[0]}x{near[1]}")
    return height // step, width // step


def _device(components: Components) -> torch.device:
    module = components.image_tokenizer or components.model
    return next(iter(module.parameters())).device
