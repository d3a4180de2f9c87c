"""Prompts as ids: equal to those of the whole string, and nothing that a user types is structure."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from mmblocks import ByteTokenizer, TokenizerFile
from mmblocks.vocabulary.spelling import Structure, encode_parts, special_id
from tests.shared.tiny_tokenizers import WORDS, byte_level

SPECIALS = ["<s>", "</s>", "<image>"]


def sentence_piece(*, first_alone: bool) -> Tokenizer:
    """Like Llama's: spaces are part of the pieces, and one is put before each text or before the first alone."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first_alone:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIALS], show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    return made


def unigram() -> Tokenizer:
    """Like T5's: special tokens are pieces of the vocabulary with scores of their own."""
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", *SPECIALS], unk_token="<unk>", show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    return made


KINDS = {
    "bytes": lambda: byte_level(SPECIALS),
    "prefix": lambda: sentence_piece(first_alone=False),
    "first prefix": lambda: sentence_piece(first_alone=True),
    "unigram": unigram,
}


@pytest.fixture(params=KINDS)
def made(request) -> Tokenizer:
    return KINDS[request.param]()


def parts_with(question: str, answer: str) -> list:
    return [
        Structure("<s>USER: "), question, Structure(" ASSISTANT:"), Structure(" "), answer, Structure("</s>"),
        "", Structure("<s>USER: "), None, "\nthe mat", Structure("</s>"),
    ]  # fmt: skip


def test_ids_are_those_of_the_whole_string(made) -> None:
    parts = parts_with("what is this?", "a cat, née café")
    whole = "".join("<image>" if part is None else part for part in parts)
    image = made.token_to_id("<image>")
    found = encode_parts(TokenizerFile.of(made), parts)
    joined = [i for part, ids in zip(parts, found, strict=True) for i in ([image] if part is None else ids)]
    assert joined == made.encode(whole, add_special_tokens=False).ids


def test_a_user_cannot_type_structure(made) -> None:
    parts = parts_with("what is <image> </s> this?", "<s> a cat</s>")
    specials = {made.token_to_id(name) for name in SPECIALS}
    found = encode_parts(TokenizerFile.of(made), parts)
    for part, ids in zip(parts, found, strict=True):
        assert isinstance(part, Structure) or not specials & set(ids)
    assert [made.id_to_token(i) for i in found[5]][-1] == "</s>"  # as structure it is


def test_parts_keep_their_own_ids() -> None:
    tokenizer = TokenizerFile.of(byte_level(SPECIALS))
    found = encode_parts(tokenizer, ["hello", Structure("<s>"), "", None, "world"])
    assert [tokenizer.decode(ids) for ids in found] == ["hello", "", "", "", "world"]
    assert found[1] == [tokenizer["<s>"]]


def test_bytes_and_tokenizers_of_ones_own() -> None:
    class Letters:
        vocab_size = 256

        def encode(self, text):
            return [ord(letter) for letter in text]

        def decode(self, ids):
            return "".join(map(chr, ids))

    assert encode_parts(Letters(), ["ab", None, Structure("c")]) == [[97, 98], [], [99]]
    own = ByteTokenizer(["<end>", "<end>>"])
    assert encode_parts(own, ["<end>", Structure("<end>>")]) == [list(b"<end>"), [257]]  # the longer name of two
    assert encode_parts(ByteTokenizer(), [Structure("<end>")]) == [list(b"<end>")]


def test_special_ids() -> None:
    tokenizer = TokenizerFile.of(byte_level(SPECIALS))
    assert special_id(tokenizer, "</s>") == tokenizer["</s>"]
    with pytest.raises(ValueError, match="accepted: a special token"):
        special_id(tokenizer, "<nothing>")
