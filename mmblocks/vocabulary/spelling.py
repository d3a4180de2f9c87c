"""Prompts as ids: a format's own words, in which names of special tokens are those tokens, and a user's, in which they are text.

A prompt is encoded as one string, so that its ids are those of the string that published processors build; then each id is given
to the part of the prompt that it comes from.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from mmblocks.vocabulary.text_tokenizers import ByteTokenizer, TextTokenizer, TokenizerFile


class Structure(str):
    """Words of a prompt's format. Names of special tokens in them are special; in any other string they are text."""

    __slots__ = ()


Part = str | None
"""A user's text, a ``Structure``, or None where something stands that is no text, such as an image."""


@runtime_checkable
class SpellingTokenizer(TextTokenizer, Protocol):
    """A tokenizer of one's own that encodes the parts of a prompt together."""

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        """The ids of each part; none for None."""
        ...


def encode_parts(tokenizer: TextTokenizer, parts: Sequence[Part]) -> list[list[int]]:
    """The ids of each part of a prompt; joined, they are those of the prompt as one string.

    Args:
        tokenizer: a ``TokenizerFile``, a ``ByteTokenizer``, or one with ``encode_parts``. Any other encodes part by part, and its
            ``encode`` decides on special tokens.
        parts: in reading order.

    Examples:
        >>> from mmblocks import ByteTokenizer
        >>> from mmblocks.vocabulary.spelling import Structure, encode_parts
        >>> tokenizer = ByteTokenizer(["<end>"])
        >>> encode_parts(tokenizer, ["a<end>", Structure("b<end>")])
        [[97, 60, 101, 110, 100, 62], [98, 256]]
    """
    if isinstance(tokenizer, SpellingTokenizer):
        return tokenizer.encode_parts(parts)
    if isinstance(tokenizer, ByteTokenizer):
        return [_bytes(tokenizer, part) for part in parts]
    if isinstance(tokenizer, TokenizerFile):
        return Speller.of(tokenizer)(parts)
    return [[] if part is None else list(tokenizer.encode(part)) for part in parts]


def special_id(tokenizer: TextTokenizer, name: str) -> int:
    """The id of a special token by its name.

    Raises:
        ValueError: a name that is no single token.
    """
    (ids,) = encode_parts(tokenizer, [Structure(name)])
    if len(ids) != 1:
        raise ValueError(f"{name!r} is {len(ids)} tokens in this vocabulary of {tokenizer.vocab_size}; accepted: a special token")
    return ids[0]


def opening_ids(tokenizer: TextTokenizer) -> list[int]:
    """The special tokens that a tokenizer's own file puts before every text, such as ``<s>``; none where it says nothing of it.

    Examples:
        >>> from mmblocks import ByteTokenizer
        >>> from mmblocks.vocabulary.spelling import opening_ids
        >>> opening_ids(ByteTokenizer(["<s>"]))
        []
    """
    return tokenizer.opening_ids if isinstance(tokenizer, TokenizerFile) else []


def _bytes(tokenizer: ByteTokenizer, part: Part) -> list[int]:
    if not isinstance(part, Structure) or not tokenizer.specials:
        return tokenizer.encode(part or "")
    pieces = _names(tokenizer.specials).split(part)
    return [i for piece in pieces for i in ([tokenizer[piece]] if piece in tokenizer.specials else tokenizer.encode(piece))]


def _names(names: Sequence[str] | dict[str, Any]) -> re.Pattern[str]:
    """Finds any of these names; of two that begin alike the longer."""
    return re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")


class Speller:
    """Encodes the parts of a prompt with a tokenizer file.

    It reads with a copy of the tokenizer in which each special token has another, secret name. A ``Structure`` is written in these
    names, so that nothing a user types is one of them; all other rules, such as spaces around special tokens, stay.

    Args:
        content: of a ``tokenizer.json``.

    Examples:
        >>> from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
        >>> from mmblocks.vocabulary.spelling import Speller, Structure
        >>> made = Tokenizer(models.WordLevel({"?": 0, "cat": 1, "<end>": 2}, unk_token="?"))
        >>> made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> _ = made.add_special_tokens(["<end>"])
        >>> Speller(made.to_str())(["cat <end>", None, Structure(" cat<end>")])
        [[1, 0], [], [1, 2]]
    """

    _FIELD = "_speller"

    def __init__(self, content: str) -> None:
        from tokenizers import Tokenizer

        data = json.loads(content)
        nonce = secrets.token_hex(8)
        self._image = f"\U000f0000{nonce}image\U000f0001"
        self._secret = {token["content"]: f"\U000f0000{nonce}{index}\U000f0001" for index, token in enumerate(data["added_tokens"])}
        _rename(data, self._secret)
        data["post_processor"] = data["truncation"] = data["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(data))
        self._tokenizer.add_special_tokens([self._image])
        self._pattern = _names(self._secret) if self._secret else None

    @classmethod
    def of(cls, tokenizer: TokenizerFile) -> "Speller":
        """The one of this tokenizer, which is made when it is first needed."""
        if cls._FIELD not in vars(tokenizer):
            vars(tokenizer)[cls._FIELD] = cls(tokenizer.content)
        speller: Speller = vars(tokenizer)[cls._FIELD]
        return speller

    def __call__(self, parts: Sequence[Part]) -> list[list[int]]:
        """The ids of each part."""
        written = [self._written(part) for part in parts]
        ends: list[int] = []
        for text in written:
            ends.append((ends[-1] if ends else 0) + len(text))
        encoding = self._tokenizer.encode("".join(written), add_special_tokens=False)
        found: list[list[int]] = [[] for _ in parts]
        at = 0
        for one, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True):
            while at < len(parts) - 1 and begin >= ends[at]:
                at += 1
            if parts[at] is not None:
                found[at].append(one)
        return found

    def _written(self, part: Part) -> str:
        if part is None:
            return self._image
        if not isinstance(part, Structure) or self._pattern is None:
            return part
        return self._pattern.sub(lambda found: self._secret[found[0]], part)


def _rename(data: dict[str, Any], names: dict[str, str]) -> None:
    """Gives special tokens of a ``tokenizer.json`` other names, their ids as they are."""
    for token in data["added_tokens"]:
        token["content"], token["normalized"] = names[token["content"]], False
    model = data["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    elif isinstance(vocabulary, list):  # pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
