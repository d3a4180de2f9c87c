"""What a pipeline gives: text and pictures as they come, and a whole reply."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL.Image import Image as PILImage


class Event(NamedTuple):
    """Something that is new.

    Attributes:
        request: which of the requests it belongs to.
        sample: which of the request's samples, where it has several (``num_images``).
        content: a piece of text, a picture, or a clip's frames.
        step: of a picture that is not finished, the pass of 0, 1, ...; None where it is.

    Examples:
        >>> from mmblocks.pipelines import Event
        >>> Event(0, 0, "a cat").step is None
        True
    """

    request: int
    sample: int
    content: str | PILImage | list[PILImage]
    step: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        content: text, pictures, and clips as lists of frames, in order.

    Examples:
        >>> from mmblocks.pipelines import Reply
        >>> Reply(("a cat",)).message
        {'role': 'assistant', 'content': 'a cat'}
    """

    content: tuple[str | PILImage | list[PILImage], ...]

    @property
    def text(self) -> str:
        """All text, joined."""
        return "".join(piece for piece in self.content if isinstance(piece, str))

    @property
    def images(self) -> list[PILImage]:
        """All pictures that are no clips."""
        return [piece for piece in self.content if isinstance(piece, PILImage)]

    @property
    def videos(self) -> list[list[PILImage]]:
        """All clips."""
        return [piece for piece in self.content if isinstance(piece, list)]

    @property
    def message(self) -> dict[str, Any]:
        """As the next message of a conversation."""
        only_text = all(isinstance(piece, str) for piece in self.content)
        return {"role": "assistant", "content": self.text if only_text else list(self.content)}
