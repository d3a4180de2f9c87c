"""Conversations as people write them: the messages of OpenAI's and transformers' chat interfaces, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from PIL.Image import Image as PILImage

from mmblocks.support.pictures import Picture, picture_of

Role = Literal["system", "user", "assistant"]

Content: TypeAlias = str | PILImage
"""A piece of a message: text, or a picture."""

Message: TypeAlias = Mapping[str, Any]
"""``{"role": "user", "content": [picture, "what is this?"]}``; see ``turns_of``."""

_PICTURES = ("image", "image_url", "input_image")
_TEXTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: whose it is.
        content: text and pictures, in reading order; text is never empty.

    Examples:
        >>> from mmblocks.prompts import Turn
        >>> Turn("user", ("what is", " this?")).text
        'what is this?'
    """

    role: Role
    content: tuple[Content, ...]

    @property
    def pictures(self) -> list[PILImage]:
        """Those of the content."""
        return [piece for piece in self.content if not isinstance(piece, str)]

    @property
    def text(self) -> str:
        """That of the content, joined."""
        return "".join(piece for piece in self.content if isinstance(piece, str))


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Messages as turns.

    Args:
        messages: of ``role`` "system" (first, if there is one), "user" or "assistant", and ``content``: a string, a ``Picture``, or
            a list of strings, pictures, and parts such as ``{"type": "text", "text": ...}``,
            ``{"type": "image", "image": picture}`` and
            ``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}``. A string in a list is text; the path of a
            file is a ``Path``, or ``{"type": "image", "path": ...}``.

    Raises:
        FileNotFoundError: no such file.
        TypeError: something else than messages.
        ValueError: no message, an empty one, an unknown role or part, a system message that is not the first, or two turns in a row
            of the same role; a picture that is none.

    Examples:
        >>> from PIL import Image
        >>> from mmblocks.prompts import turns_of
        >>> (turn,) = turns_of([{"role": "user", "content": [Image.new("RGB", (4, 4)), "what is this?"]}])
        >>> turn.role, turn.text, len(turn.pictures)
        ('user', 'what is this?', 1)
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages is a {type(messages).__name__}; accepted: a list of {{'role': ..., 'content': ...}}")
    if not messages:
        raise ValueError("messages is empty; accepted: at least one message")
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    for index, turn in enumerate(turns):
        if turn.role == "system" and index:
            raise ValueError(f"messages[{index}] is of the system; accepted: a system message first, or none")
        if index and turn.role == turns[index - 1].role:
            found = f"messages[{index - 1}] and messages[{index}] are both of the {turn.role}"
            raise ValueError(f"{found}; accepted: roles that alternate")
    return turns


def content_of(content: object, name: str) -> tuple[Content, ...]:
    """Text and pictures; raises as ``turns_of``."""
    pieces = list(content) if isinstance(content, list | tuple) else [content]
    found = [piece for index, one in enumerate(pieces) for piece in _piece(one, f"{name}[{index}]" if len(pieces) > 1 else name)]
    if not found:
        raise ValueError(f"{name} is empty; accepted: text or pictures")
    return tuple(found)


def _turn(message: object, name: str) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= {*message}:
        raise TypeError(f"{name} is {_short(message)}; accepted: a dict with 'role' and 'content'")
    role = message["role"]
    if role not in get_args(Role):
        raise ValueError(f"{name} has role {role!r}; accepted: {', '.join(get_args(Role))}")
    return Turn(role, content_of(message["content"], f"{name}['content']"))


def _piece(piece: object, name: str) -> list[Content]:
    """A piece of a message's content; nothing for empty text."""
    if isinstance(piece, str):
        return [piece] if piece else []
    if not isinstance(piece, Mapping):
        return [_picture(piece, name)]
    kind = piece.get("type", "text" if "text" in piece else None)
    if kind in _TEXTS:
        return _piece(str(piece.get("text", "")), name)
    if kind not in _PICTURES:
        raise ValueError(f"{name} has type {kind!r}; accepted: {', '.join((*_TEXTS, *_PICTURES))}")
    for key in ("image", "path", "url", "base64", "image_url"):
        if key in piece:
            value = piece[key]
            value = value.get("url") if isinstance(value, Mapping) else value
            return [_picture(f"data:image;base64,{value}" if key == "base64" else value, name)]
    raise ValueError(f"{name} has entries {list(piece)}; accepted: an image under 'image', 'path', 'url', 'base64' or 'image_url'")


def _picture(picture: Any, name: str) -> PILImage:
    try:
        return picture_of(picture, name)
    except TypeError as error:
        raise TypeError(f"{error}, text, or a dict with 'type'") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


__all__ = ["Content", "Message", "Picture", "Role", "Turn", "content_of", "turns_of"]
