"""Text as token ids: bytes, or any tokenizer file of the Hugging Face ``tokenizers`` library."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol, runtime_checkable


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


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, named special tokens from 256 on. Needs no file and no training.

    Args:
        specials: names of special tokens, such as ``("<bos>", "<eos>")``; ``tokenizer["<bos>"]`` is the id. Text never
            turns into a special token, however it is spelled.

    Raises:
        ValueError: if a name occurs twice.
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


class TokenizerFile:
    """A ``tokenizer.json`` as any Hugging Face model ships it, read by the ``tokenizers`` library.

    No template is applied and no special token is added: what a sample holds is what the model sees.

    Args:
        path: the file, or a folder that holds ``tokenizer.json``.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the ``tokenizers`` library is missing.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"path is {str(path)!r}: no tokenizer file is there")
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError('TokenizerFile needs the tokenizers library: pip install "mmblocks[transformers]"') from error
        self._tokenizer = Tokenizer.from_file(str(file))
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __getitem__(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise KeyError(f"no token {token!r} in this vocabulary of {self.vocab_size}")
        return index

    def encode(self, text: str) -> list[int]:
        """Text -> ids; no special tokens are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
