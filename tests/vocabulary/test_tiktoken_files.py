"""``.tiktoken`` files give the ids of byte pair encoding by rank."""

import base64
import re
from itertools import pairwise

import pytest

from mmblocks import TokenizerFile
from mmblocks.vocabulary.tiktoken_files import tiktoken_tokenizer

WORDS = b"the cat sat on the mat; the catalogue of cats: caf\xc3\xa9 123 123"


def ranks_of(text: bytes, size: int) -> list[bytes]:
    """Tokens of byte pair encoding, learned from a text word by word."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [[bytes([byte]) for byte in word] for word in re.findall(rb" ?[^ ]+", text)]
    while len(tokens) < size:
        pairs = [pair for word in words for pair in pairwise(word)]
        left, right = max(sorted(set(pairs)), key=pairs.count)
        tokens.append(left + right)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if word[at] == left and word[at + 1] == right:
                    word[at : at + 2] = [left + right]
                at += 1
    return tokens


def encoded(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """By rank, as tiktoken encodes a word."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, at = min((ranks.get(a + b, 10**9), at) for at, (a, b) in enumerate(pairwise(parts)))
        if rank == 10**9:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


@pytest.fixture(scope="module")
def tokens() -> list[bytes]:
    return ranks_of(WORDS, 275)


def written(tokens, folder):
    file = folder / "own.tiktoken"
    file.write_text("\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)) + "\n")
    return file


def test_ids_are_those_by_rank(tokens, tmp_path) -> None:
    tokenizer = TokenizerFile.of(tiktoken_tokenizer(written(tokens, tmp_path), {"<end>": 275, "<begin>": 276}))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for text in ("the cat sat", " catalogue", "café cats", "mat; 😀"):
        words = re.findall(r"(?: ?[^\W\d_]+)|(?: ?[^\s\w]+)| ", text)
        assert tokenizer.encode(text) == [i for word in words for i in encoded(word.encode(), ranks)], text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer["<begin>"] == 276
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("café")  # in Unicode's form NFC


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("YQ== 1\n", "rank 1; accepted: 0"),
        ("YQ==\n", "line 1 is no token"),
        ("%%% 0\n", "line 1 is no token"),
        ("", "holds no token"),
    ],
)
def test_broken_files_are_refused(content, match, tmp_path) -> None:
    file = tmp_path / "broken.tiktoken"
    file.write_text(content)
    with pytest.raises(ValueError, match=match):
        tiktoken_tokenizer(file, {})


def test_special_ids_follow(tokens, tmp_path) -> None:
    with pytest.raises(ValueError, match="accepted: 275, 276"):
        tiktoken_tokenizer(written(tokens, tmp_path), {"<end>": 300})
