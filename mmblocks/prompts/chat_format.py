"""How a conversation is spelled: the words and special tokens around each turn, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL.Image import Image as PILImage

from mmblocks.prompts.messages import Turn
from mmblocks.sequence.segments import Segment, text
from mmblocks.vocabulary.spelling import Part, Structure, encode_parts
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

HOLE = "{}"
"""Where a template's content stands."""

ReadPicture = Callable[[PILImage, str | None], list[Segment]]
"""A picture, and the head that learns to write it (None where it is only read), to what stands in a row for it."""


class Piece(NamedTuple):
    """A part of a prompt before it is encoded.

    Attributes:
        part: text or structure; None for a picture.
        learned: whether the model learns to write it.
        picture: the picture.
    """

    part: Part
    learned: bool = False
    picture: PILImage | None = None


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The words around each turn. Names of special tokens in them are those tokens; in a user's words they are text.

    Attributes:
        begin: before everything.
        system, user, assistant: around the content of each turn, which stands at ``{}``.
        reply: what opens the model's answer.
        default_system: the system's message where a conversation has none; None for none.
        picture: around each picture, which stands at ``{}``.
        pictures_first: whether a turn's pictures stand before its text.
        stop: special tokens that end an answer; the first is what follows an answer in training.

    Raises:
        ValueError: a template without ``{}``, or with several.

    Examples:
        >>> from mmblocks import ByteTokenizer
        >>> from mmblocks.prompts import ChatFormat, turns_of
        >>> form = ChatFormat(user="USER: {} ", assistant="ASSISTANT: {}<end>", reply="ASSISTANT:", stop=("<end>",))
        >>> tokenizer = ByteTokenizer(["<end>"])
        >>> prompt = form.prompt(turns_of([{"role": "user", "content": "hello<end>"}]), tokenizer, lambda picture, target: [])
        >>> bytes(i for segment in prompt for i in segment.content).decode()
        'USER: hello<end> ASSISTANT:'
    """

    begin: str = ""
    system: str = "{}"
    user: str = "{}"
    assistant: str = "{}"
    reply: str = ""
    default_system: str | None = None
    picture: str = "{}"
    pictures_first: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("system", "user", "assistant", "picture"):
            if getattr(self, name).count(HOLE) != 1:  # one of four fields of the same kind
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: a template with one {HOLE}")

    def prompt(self, turns: Sequence[Turn], tokenizer: TextTokenizer, read: ReadPicture) -> list[Segment]:
        """A conversation that the model is to continue.

        Args:
            turns: the last one is the user's.
            tokenizer: of the text.
            read: makes segments of pictures.

        Raises:
            ValueError: the last turn is not the user's.
        """
        if turns[-1].role != "user":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the user's, which the model answers")
        return _segments([*self._pieces(turns), Piece(Structure(self.reply))], tokenizer, read, None)

    def sample(self, turns: Sequence[Turn], tokenizer: TextTokenizer, read: ReadPicture, *, target: str = "text") -> list[Segment]:
        """A conversation whose answers are learned.

        Args:
            turns: the last one is the assistant's.
            tokenizer: of the text.
            read: makes segments of pictures.
            target: the head that learns the text of the answers, and the token that ends each.

        Raises:
            ValueError: the last turn is not the assistant's.
        """
        if turns[-1].role != "assistant":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the assistant's, which is learned")
        return _segments(self._pieces(turns), tokenizer, read, target)

    def _pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        pieces = [Piece(Structure(self.begin))]
        if turns[0].role != "system" and self.default_system is not None:
            pieces += self._turn(self.system, Turn("system", (self.default_system,)))
        for turn in turns:
            template = {"system": self.system, "user": self.user, "assistant": self.assistant}[turn.role]
            pieces += self._turn(template, turn)
        return pieces

    def _turn(self, template: str, turn: Turn) -> list[Piece]:
        before, after = template.split(HOLE)
        learned = turn.role == "assistant"
        content: list[str | PILImage] = list(turn.content)
        if self.pictures_first:
            content.sort(key=lambda piece: isinstance(piece, str))
        pieces = [Piece(Structure(before))]
        open_picture, close_picture = self.picture.split(HOLE)
        for piece in content:
            if isinstance(piece, str):
                pieces.append(Piece(piece, learned))
            else:
                around = (Piece(Structure(part), learned) for part in (open_picture, close_picture))
                pieces += [next(around), Piece(None, learned, piece), next(around)]
        end = self._end(after) if learned else 0
        return [*pieces, Piece(Structure(after[:end]), learned), Piece(Structure(after[end:]))]

    def _end(self, after: str) -> int:
        """How much of what follows an answer belongs to it: up to the token that stops it."""
        found = [after.index(stop) + len(stop) for stop in self.stop if stop in after]
        return min(found, default=0)


def _segments(pieces: Sequence[Piece], tokenizer: TextTokenizer, read: ReadPicture, target: str | None) -> list[Segment]:
    segments: list[Segment] = []
    run: list[int] = []
    run_learned = False

    def close() -> None:
        if run:
            segments.append(text(list(run), target=target if run_learned else None))
            run.clear()

    for piece, ids in zip(pieces, encode_parts(tokenizer, [piece.part for piece in pieces]), strict=True):
        if piece.picture is not None:
            close()
            segments += read(piece.picture, target if piece.learned else None)
        elif ids:
            if piece.learned != run_learned:
                close()
            run_learned = piece.learned
            run += ids
    close()
    return segments
