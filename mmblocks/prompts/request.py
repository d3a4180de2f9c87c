"""What a front makes of what a user wants, and the abilities that a front may have.

A front knows a family's prompts and settings, and holds no weights. It has those of the methods below that its model can do; a
``Pipeline`` offers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from PIL.Image import Image as PILImage
from torch import Generator, nn

from mmblocks.block import Block
from mmblocks.compose import MultimodalModel
from mmblocks.generation.grammar import Grammar
from mmblocks.generation.options import Generation
from mmblocks.prompts.messages import Turn
from mmblocks.roles import Preprocessing, Tokenizer
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment
from mmblocks.vocabulary.text_tokenizers import TextTokenizer


@runtime_checkable
class ImageTokenizer(Tokenizer, Preprocessing, Protocol):
    """A tokenizer of image files."""


class NoText:
    """Stands for the text tokenizer of a model that reads no text.

    Examples:
        >>> from mmblocks.prompts import NoText
        >>> NoText().vocab_size
        0
    """

    vocab_size = 0

    def encode(self, text: str) -> list[int]:
        """Raises ``ValueError``."""
        raise ValueError("the pipeline has no text_tokenizer; accepted where text is read: Pipeline(..., text_tokenizer=...)")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of no ids; raises ``ValueError`` for any."""
        if ids:
            self.encode("")
        return ""


@dataclass
class Components:
    """The parts of a pipeline; each can be replaced.

    Attributes:
        model: reads and writes; a ``MultimodalModel``, or a model that a front draws with in a way of its own.
        text_tokenizer: of its text; ``NoText`` where it reads none.
        image_tokenizer: between pictures and the codes or latents that it reads or writes; None where there are none.
        decoder: from what it writes to pixels, where that is not the image tokenizer's work; or from its states to what it writes.

    Examples:
        >>> from mmblocks import ByteTokenizer
        >>> from mmblocks.models import Emu3
        >>> from mmblocks.prompts import Components
        >>> components = Components(Emu3(vocab_size=256, dim=16, num_layers=1, num_heads=2, mlp_dim=16), ByteTokenizer())
        >>> components.image_tokenizer is None
        True
    """

    model: Block
    text_tokenizer: TextTokenizer
    image_tokenizer: nn.Module | None = None
    decoder: nn.Module | None = None


@dataclass(frozen=True)
class Request:
    """One row to be continued, and how.

    Attributes:
        prompt: what stands before what is written.
        grammar: what may be written.
        options: the published settings.
        unconditional: for guidance, the prompt of each further stream.

    Examples:
        >>> from mmblocks import Generation, TextGrammar, text
        >>> from mmblocks.prompts import Request
        >>> Request([text("1 + 1 = ")], TextGrammar(256), Generation(max_tokens=4)).unconditional
        ()
    """

    prompt: Sample
    grammar: Grammar
    options: Generation
    unconditional: tuple[Sample, ...] = field(default=())


@runtime_checkable
class Drawing(Protocol):
    """A picture that is made in a way of its own, such as by a decoder that draws at random; in place of a ``Request``.

    It is a data class. Of its fields ``guidance`` and ``sampling``, where it has them, ``Settings`` may change the values.
    """

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The picture; all randomness is the generator's, which is on the model's device."""
        ...


@runtime_checkable
class Chats(Protocol):
    """Answers messages."""

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation."""
        ...


@runtime_checkable
class DrawsImages(Protocol):
    """Makes an image of a text."""

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request | Drawing:
        """An image; ``size`` is (height, width) in pixels, None the published one."""
        ...


@runtime_checkable
class DrawsClasses(Protocol):
    """Makes an image of a class, which is told by its number or its name."""

    def num_classes(self, components: Components) -> int:
        """Classes of the model."""
        ...

    def generate_image(
        self, components: Components, prompt: str | int, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request | Drawing:
        """An image; ``size`` is (height, width) in pixels, None the published one."""
        ...


@runtime_checkable
class EditsImages(Protocol):
    """Makes an image of images and a text."""

    def edit(
        self, components: Components, pictures: Sequence[PILImage], prompt: str, *, size: tuple[int, int] | None
    ) -> Request | Drawing:
        """An image; ``size`` is (height, width) in pixels, None the method's choice."""
        ...


@runtime_checkable
class DrawsVideos(Protocol):
    """Makes a clip of a text."""

    def generate_video(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, num_frames: int | None
    ) -> Request:
        """A clip; ``size`` is (height, width) in pixels."""
        ...


@runtime_checkable
class Shows(Protocol):
    """Makes pictures of what its model writes."""

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture, or a clip's frames."""
        ...


@runtime_checkable
class Trains(Protocol):
    """Makes samples for training of conversations."""

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned, in the format that ``chat`` uses."""
        ...


def multimodal(components: Components) -> MultimodalModel:
    """The model, where it is one that writes rows.

    Raises:
        TypeError: it is another one.
    """
    if not isinstance(components.model, MultimodalModel):
        raise TypeError(f"model is a {type(components.model).__name__}; accepted of this front: a MultimodalModel")
    return components.model


ABILITIES: dict[str, type] = {
    "chat": Chats,
    "generate_image": DrawsImages,
    "edit": EditsImages,
    "generate_video": DrawsVideos,
    "training_samples": Trains,
}
"""What a pipeline may be asked to do, and the protocol of a front that can."""
