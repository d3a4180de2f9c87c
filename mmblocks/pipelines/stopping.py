"""Stop strings: rows end when their text holds one, wherever tokens begin and end."""

from collections.abc import Sequence

from mmblocks.vocabulary.text_tokenizers import TextStream, TextTokenizer


class StopStrings:
    """Ends rows whose text holds a stop string; see ``Generation.ends``.

    Args:
        tokenizer: of the text.
        strings: by row.
    """

    def __init__(self, tokenizer: TextTokenizer, strings: Sequence[Sequence[str]]) -> None:
        self._strings = [tuple(own) for own in strings]
        self._streams = [TextStream(tokenizer) for _ in strings]
        self._tails = ["" for _ in strings]

    def __call__(self, row: int, next_id: int) -> bool:
        """Whether the row is to end after this id."""
        if not self._strings[row]:
            return False
        longest = max(map(len, self._strings[row]))
        tail = self._tails[row] + self._streams[row].push(next_id)
        self._tails[row] = tail[-2 * longest :]
        return any(string in tail for string in self._strings[row])


class UntilStop:
    """Hands text on up to the first stop string; what may be the beginning of one is held back.

    Args:
        strings: the stop strings.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self._stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain with this piece."""
        if self._stopped or not self._strings:
            return "" if self._stopped else piece
        text = self._held + piece
        ends = [at for string in self._strings if (at := text.find(string)) >= 0]
        if ends:
            self._stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((self._overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """Characters at the end of a text with which a stop string begins."""
        sizes = range(min(len(text), len(string) - 1), 0, -1)
        return next((size for size in sizes if text.endswith(string[:size])), 0)
