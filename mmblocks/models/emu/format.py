"""How models of the Emu family are prompted, as data, and prompts as segments.

prompt = EMU.write(["a dog", pixels, "with a hat"])     # for ``Emu.embeddings`` or ``generate``
chat = EMU_INSTRUCT.chat([[pixels, "what is this?"]])
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD
from mmblocks.sequence.segments import Segment, image, text

Piece = str | Tensor
"""Of a prompt: text, an image (3, H, W), or the frames of a video (T, 3, H, W)."""


@dataclass(frozen=True, kw_only=True)
class EmuFormat:
    """What a model of the family is told, and with which numbers its images are made.

    Attributes:
        ids: structure ids by their spelling, ``<s>`` and ``</s>`` among them.
        image_tokens: visual tokens of an image.
        frame_tokens: of a frame of a video.
        video: the spelling that comes before the frames of a video; "" for none.
        frame_input: the model's input that reads frames.
        num_frames: how many frames the authors' code takes of a video, evenly spread; None where it leaves that to the caller.
        image_size: height and width of images, in pixels, to which any image is squashed (bicubic).
        mean, std: what pixels in [0, 1] are normalised with; the models do so themselves.
        system: sentences at the beginning of a chat by what it is about; "" is the usual one.
        user, next_user: what comes before the first message of the user's, and before later ones.
        assistant: what comes before an answer that is told.
        opening: what comes before the answer that is to be written.
        size: height and width of generated images, in pixels.
        guidance: scale of the image decoder's guidance.
        num_steps: of its sampler.

    Source: Emu (arXiv 2307.05222), Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from mmblocks.models.emu.format import EMU, EMU_INSTRUCT
        >>> [type(segment).__name__ for segment in EMU.write(["a dog", torch.rand(3, 224, 224)])]  # <s>, "a dog", [IMG], it, [/IMG]
        ['Text', 'Text', 'Text', 'Image', 'Text']
        >>> chat = EMU_INSTRUCT.chat([["what is this?"]])
        >>> [segment.content for segment in chat]
        [[1], [32004], ': what is this? ', [32005], ':']
    """

    ids: Mapping[str, int]
    image_tokens: int
    frame_tokens: int
    video: str = ""
    frame_input: str = "vision"
    num_frames: int | None = None
    image_size: tuple[int, int]
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    system: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    user: str = " [USER]: "
    next_user: str = "</s>[USER]: "
    assistant: str = " [ASSISTANT]: "
    opening: str = " [ASSISTANT]:"
    size: tuple[int, int]
    guidance: float
    num_steps: int = 50

    @property
    def begin(self) -> int:
        """The id that opens an image."""
        return self.ids["[IMG]"]

    @property
    def end(self) -> int:
        """The id that closes it."""
        return self.ids["[/IMG]"]

    @property
    def stop(self) -> int:
        """The id that ends an answer."""
        return self.ids["</s>"]

    def write(self, pieces: Sequence[Piece]) -> list[Segment]:
        """A prompt, beginning with ``<s>``. Structure ids that are spelled in text are ids, as upstream's tokenizer has it."""
        segments: list[Segment] = [text([self.ids["<s>"]])]
        for piece in pieces:
            segments += self.spelled(piece) if isinstance(piece, str) else self.shown(piece)
        return segments

    def chat(self, messages: Sequence[Sequence[Piece]], *, about: str = "") -> list[Segment]:
        """A chat that the model is to answer: the user's message, an answer, the user's next message, and so on.

        Args:
            messages: an odd number of them, each in pieces.
            about: which of the ``system`` sentences it begins with.

        Raises:
            ValueError: an even number of messages, or another sentence.
        """
        if len(messages) % 2 == 0:
            raise ValueError(f"{len(messages)} messages; accepted: an odd number, the last of them the user's")
        if about not in self.system:
            raise ValueError(f"about is {about!r}; accepted: {', '.join(map(repr, self.system))}")
        pieces: list[Piece] = [self.system[about]]
        for index, message in enumerate(messages):
            pieces += [self.assistant if index % 2 else self.next_user if index else self.user, *message]
        joined: list[Piece] = []
        for piece in [*pieces, self.opening]:  # what stands together is spelled together
            if isinstance(piece, str) and joined and isinstance(joined[-1], str):
                joined[-1] += piece
            else:
                joined.append(piece)
        return self.write([joined[0].lstrip() if isinstance(joined[0], str) else joined[0], *joined[1:]])

    def spelled(self, string: str) -> list[Segment]:
        """Text with structure ids in it."""
        names = "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True)))
        pieces = [piece for piece in re.split(f"({names})", string) if piece]
        return [text([self.ids[piece]]) if piece in self.ids else text(piece) for piece in pieces]

    def shown(self, pixels: Tensor) -> list[Segment]:
        """An image, or the frames of a video one after the other, each between the ids around an image."""
        around = text([self.begin]), text([self.end])
        if pixels.ndim == 3:
            return [around[0], image(pixels), around[1]]
        segments: list[Segment] = [text([self.ids[self.video]])] if self.video else []
        for frame in pixels:
            segments += [around[0], image(frame, input=self.frame_input), around[1]]
        return segments


_IDS = {"<s>": 1, "</s>": 2, "[PAD]": 32000, "[IMG]": 32001, "[/IMG]": 32002, "<image>": 32003}
_SEES = "You will be able to see the {} after I provide it to you. Please answer my questions based on the given {}."

EMU = EmuFormat(
    ids=_IDS,
    image_tokens=32,
    frame_tokens=32,
    num_frames=8,
    image_size=(224, 224),
    size=(512, 512),
    guidance=7.5,
)
"""Emu as it was pretrained, which reads plain text and images. Its own example of images in context has a guidance of 10."""

EMU_INSTRUCT = EmuFormat(
    ids={**_IDS, "[USER]": 32004, "[ASSISTANT]": 32005},
    image_tokens=32,
    frame_tokens=32,
    num_frames=8,
    image_size=(224, 224),
    system={
        "": "",
        "image": f"You will be presented with an image: [IMG]ImageContent[/IMG]. {_SEES.format('image', 'image')}",
        "video": "You are a helpful assistant and you will be presented with a video consisting of multiple chronological images: "
        f"[IMG]ImageContent[/IMG]. {_SEES.format('video', 'video')}",
    },
    size=(512, 512),
    guidance=7.5,
)
"""Emu-I, which chats; the authors' image decoder does not go with it."""

EMU_IDS, EMU_INSTRUCT_IDS = EMU.ids, EMU_INSTRUCT.ids
"""What the authors' code adds to LLaMA's tokenizer when it runs, beside what it holds."""
