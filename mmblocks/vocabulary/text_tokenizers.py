"""Text as token ids: bytes, or any tokenizer file of the Hugging Face ``tokenizers`` library; and decoding ids as they come."""

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

BROKEN = "\ufffd"
"""What a tokenizer makes of bytes that are not a whole character, or not yet."""

CONTEXT = 64
"""Ids of which a ``TextStream`` decodes the next ones as the continuation, at least."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token of a byte that no other token covers, as SentencePiece writes it."""


@runtime_checkable
class TextTokenizer(Protocol):
    """What the rest of the library asks of a text tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Text -> ids in [0, vocab_size)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        ...


@runtime_checkable
class SettlingTokenizer(TextTokenizer, Protocol):
    """A tokenizer whose next id may change the text of earlier ones, and which says of how many it cannot.

    What an id adds to the text must follow from the ``CONTEXT`` ids before it. Without ``num_settled`` text is taken to grow at its
    end alone, save for an incomplete character there.
    """

    def num_settled(self, ids: Sequence[int]) -> int:
        """How many of the first ids have text that no further id changes."""
        ...


class TextStream:
    """Decodes ids as they come: the pieces joined are ``tokenizer.decode`` of all ids, and no character is cut.

    Ids are never decoded apart: the space between words may belong to the earlier word, to the later one, or to neither.

    Args:
        tokenizer: any; see ``SettlingTokenizer``.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def push(self, next_id: int) -> str:
        """The text that is certain with this id, and was not before; often empty.

        Raises:
            ValueError: the tokenizer changes text that was handed out already.
        """
        self._ids.append(next_id)
        if not isinstance(self.tokenizer, SettlingTokenizer):
            return self._piece(self.tokenizer.decode(self._ids).rstrip(BROKEN))
        count = self.tokenizer.num_settled(self._ids)
        if count == 0:
            return ""
        text = self.tokenizer.decode(self._ids[:count])
        piece = self._piece(text.rstrip(BROKEN))
        if count >= 4 * CONTEXT and not text.endswith(BROKEN):
            self._forget(count - CONTEXT)
        return piece

    def _forget(self, count: int) -> None:
        """Drops the first ids, or else each id would take longer than the one before; some stay, so that no id is the first."""
        text = self.tokenizer.decode(self._ids[count : count + CONTEXT])
        if text and not text.endswith(BROKEN):
            self._ids, self._given = self._ids[count:], text

    def finish(self) -> str:
        """What is left when no id follows; the next id begins another text.

        Raises:
            ValueError: the tokenizer changes text that was handed out already.
        """
        piece = self._piece(self.tokenizer.decode(self._ids)) if self._ids else ""
        self._ids, self._given = [], ""
        return piece

    def _piece(self, text: str) -> str:
        if not text.startswith(self._given):
            found = (
                f"{type(self.tokenizer).__name__} made {self._given[-40:]!r} of the first ids and {text[-40:]!r} of more of them"
            )
            raise ValueError(f"{found}; accepted: a tokenizer whose text grows, or num_settled, or text that is not streamed")
        piece, self._given = text[len(self._given) :], text
        return piece


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, named special tokens from 256 on. Needs no file and no training.

    Args:
        specials: names of special tokens, such as ``("<bos>", "<eos>")``; ``tokenizer["<bos>"]`` is the id. Text never
            turns into a special token, however it is spelled.

    Raises:
        ValueError: if a name occurs twice.

    Examples:
        >>> from mmblocks import ByteTokenizer
        >>> tokenizer = ByteTokenizer(specials=("<bos>", "<eos>"))
        >>> ids = [tokenizer["<bos>"], *tokenizer.encode("sept")]
        >>> ids, tokenizer.decode(ids), tokenizer.vocab_size
        ([256, 115, 101, 112, 116], 'sept', 258)
    """

    def __init__(self, specials: Sequence[str] = ()) -> None:
        if len(set(specials)) < len(specials):
            raise ValueError(f"specials are {list(specials)}; accepted: names that differ")
        self.specials = {name: 256 + index for index, name in enumerate(specials)}
        self.vocab_size = 256 + len(specials)

    def __getitem__(self, name: str) -> int:
        if name not in self.specials:
            raise KeyError(f"no special token {name!r}; there are {list(self.specials)}")
        return self.specials[name]

    def encode(self, text: str) -> list[int]:
        """Text -> its UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text. Special tokens are left out; bytes that are no valid UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is outside [0, vocab_size).
        """
        strange = [i for i in ids if not 0 <= i < self.vocab_size]
        if strange:
            raise ValueError(f"ids holds {strange[0]}; accepted: [0, {self.vocab_size - 1}]")
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def num_settled(self, ids: Sequence[int]) -> int:
        """How many of the first ids have text that no further id changes: all but the bytes of a character that is not complete."""
        num_following = 0
        for place in range(len(ids) - 1, -1, -1):
            byte = ids[place]
            if byte >= 256:  # special tokens leave no text, and part no bytes
                continue
            if byte >= 0xC0:
                return place if num_following < _following(byte) else len(ids)
            num_following += 1
            if byte < 0x80 or num_following == 3:
                break
        return len(ids)


def _following(lead: int) -> int:
    """How many bytes a character of UTF-8 has after its first one."""
    return 1 + (lead >= 0xE0) + (lead >= 0xF0)


class TokenizerFile:
    """A ``tokenizer.json`` as any Hugging Face model ships it, read by the ``tokenizers`` library.

    No template is applied and no special token is added: what a sample holds is what the model sees.

    Args:
        path: the file, or a folder that holds ``tokenizer.json``.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the ``tokenizers`` library is missing.
        ValueError: if it is no tokenizer's file.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from mmblocks import TokenizerFile
        >>> made = Tokenizer(models.WordLevel({"a": 0, "black": 1, "cat": 2}, unk_token="a"))
        >>> made.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> made.save("tokenizer.json")
        >>> tokenizer = TokenizerFile(".")
        >>> tokenizer.encode("a black cat"), tokenizer.decode([1, 2]), tokenizer.vocab_size
        ([0, 1, 2], 'black cat', 3)
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"path is {str(path)!r}: no tokenizer file is there")
        tokenizers = _library()
        try:
            self._read(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # of no class of its own
            raise ValueError(f"{file} is no tokenizer's file: {error}") from error

    @classmethod
    def of(cls, tokenizer: Any) -> "TokenizerFile":
        """One around a ``tokenizers.Tokenizer`` that is there already, such as transformers' ``backend_tokenizer``."""
        self = cls.__new__(cls)
        self._read(_library().Tokenizer.from_str(tokenizer.to_str()))
        return self

    def _read(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        decoder = tokenizer.decoder
        self._later = _change_by_later(None if decoder is None else json.loads(decoder.__getstate__()))
        added = tokenizer.get_added_tokens_decoder()
        self._specials = {index for index, token in added.items() if token.special}

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def opening_ids(self) -> list[int]:
        """The special tokens that the file itself would put before a text."""
        found = self._tokenizer.encode("a", add_special_tokens=True)
        own = [of is not None for of in found.sequence_ids]
        return list(found.ids[: own.index(True)] if True in own else [])

    @property
    def content(self) -> str:
        """What the file says, as JSON."""
        content: str = self._tokenizer.to_str()
        return content

    def extended(self, names: Sequence[str]) -> "TokenizerFile":
        """One with these special tokens after all others, in this order."""
        copy = _library().Tokenizer.from_str(self.content)
        copy.add_special_tokens(list(names))
        return TokenizerFile.of(copy)

    def __getitem__(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise KeyError(f"no token {token!r} in this vocabulary of {self.vocab_size}")
        return index

    def encode(self, text: str) -> list[int]:
        """Text -> ids; no special tokens are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out.

        Raises:
            ValueError: if an id is negative, or above 2^32 - 1.
        """
        try:
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)
        except OverflowError as error:
            raise ValueError(f"ids holds one of {min(ids)} to {max(ids)}; accepted: ids of the vocabulary") from error

    def num_settled(self, ids: Sequence[int]) -> int:
        """How many of the first ids have text that no further id changes.

        Single bytes that stand side by side are text together, or are all replaced where one of them fits in no character.
        """
        if self._later == "anything":
            return 0
        count = len(ids)
        while self._later == "bytes" and count and self._may_be_byte(ids[count - 1]):
            count -= 1
        return count

    def _may_be_byte(self, index: int) -> bool:
        """Whether the id is a byte, or leaves no text between two that are."""
        token = self._tokenizer.id_to_token(index)
        return token is None or index in self._specials or _BYTE.fullmatch(token) is not None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError('TokenizerFile needs the tokenizers library: pip install "mmblocks[transformers]"') from error
    return tokenizers


def _change_by_later(decoder: Mapping[str, object] | None) -> Literal["nothing", "bytes", "anything"]:
    """What of the text a later token may change, told from the decoder in a tokenizer file.

    Most decoders treat each token by itself, or the first one apart from all others, and ``Fuse`` and ``ByteLevel`` make one text
    of what they are given. After these only what works from the left is known not to look ahead.
    """
    found: Literal["nothing", "bytes"] = "nothing"
    is_one_text = False
    for step in _steps(decoder):
        kind = step["type"]
        if kind in ("ByteLevel", "Fuse"):
            is_one_text = True
        elif is_one_text:
            if kind != "Strip" or step["stop"] != 0:
                return "anything"
        elif kind == "ByteFallback":
            found = "bytes"
        elif kind not in ("Metaspace", "WordPiece", "BPEDecoder", "Replace", "Strip", "CTC"):
            return "anything"
    return found


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return [step for part in decoder["decoders"] for step in _steps(part)] if decoder["type"] == "Sequence" else [decoder]
