"""``.tiktoken`` files, a token's bytes and its rank a line, as tokenizers of the ``tokenizers`` library."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen's and Emu3's tokenizers cut text into words. Source: QwenLM/Qwen."""


def tiktoken_tokenizer(path: str | Path, specials: Mapping[str, int], *, pattern: str = QWEN_PATTERN) -> Any:
    """A ``tokenizers.Tokenizer`` of a ``.tiktoken`` file; text is brought to Unicode's form NFC first, as Qwen does.

    Args:
        path: the file.
        specials: names and ids of special tokens, which follow the file's ids.
        pattern: cuts text into words, between which nothing is merged.

    Raises:
        ImportError: the ``tokenizers`` library is missing.
        ValueError: a line that is no token and rank, ranks that are not 0, 1, ..., or special ids that do not follow.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ImportError('.tiktoken files need the tokenizers library: pip install "mmblocks[transformers]"') from error
    tokens = _tokens(Path(path))
    ids = sorted(specials.values())
    if ids != list(range(len(tokens), len(tokens) + len(ids))):
        raise ValueError(f"specials have ids from {ids[:1]}; accepted: {len(tokens)}, {len(tokens) + 1}, ... after those of {path}")
    vocabulary = {_spelled(token): rank for rank, token in enumerate(tokens)}
    merges = [(_spelled(left), _spelled(right)) for left, right in _merges(tokens)]
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    names = sorted(specials, key=lambda name: specials[name])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return made


def _tokens(path: Path) -> list[bytes]:
    """The tokens in the order of their ranks."""
    found: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            content = base64.b64decode(token, validate=True)
            expected = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number} is no token in base64 and its rank: {error}") from error
        if expected != len(found):
            raise ValueError(f"{path}, line {number} has rank {expected}; accepted: {len(found)}, one more than the line before")
        found.append(content)
    if not found:
        raise ValueError(f"{path} holds no token")
    return found


def _merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each longer one is merged from: what is left when all earlier merges of its bytes are done."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) < 2:
            continue
        parts = [token[at : at + 1] for at in range(len(token))]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), at) for at, (a, b) in enumerate(pairwise(parts))]
            best, at = min(pairs)
            if best >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


@lru_cache(1)
def _letters() -> dict[int, str]:
    """A printable character for each byte, as byte-level tokenizers write them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _spelled(token: bytes) -> str:
    letters = _letters()
    return "".join(letters[byte] for byte in token)
