"""Text that is decoded as its ids come: the pieces joined are the text of all ids."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmblocks.generation.autoregressive import Step
from mmblocks.generation.grammar import State, TextGrammar
from mmblocks.generation.interleaved import segments_of
from mmblocks.vocabulary import text_tokenizers
from mmblocks.vocabulary.text_tokenizers import ByteTokenizer, TextStream, TokenizerFile

tokenizers = pytest.importorskip("tokenizers")
decoders, models, pre_tokenizers, trainers = (
    getattr(tokenizers, name) for name in ("decoders", "models", "pre_tokenizers", "trainers")
)

CORPUS = ["the quick brown fox jumps over the lazy dog, again and again.", "au revoir, brother; don't you think so? I do not!"] * 8
SPECIAL, ADDED = "<image>", "new york"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama():
    """As Llama's: words by "▁", merges, and bytes for what no merge covers."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    content = json.loads(trained.to_str())["model"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(["<unk>", *BYTES, *content["vocab"]]))}
    merges = [tuple(merge) for merge in content["merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def metaspace():
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    return made


def byte_level():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return made


def word_piece(cleanup: bool = True):
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=cleanup)
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False))
    return made


def word_ends():
    """As CLIP's: tokens that end a word say so."""
    made = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder(suffix="</w>")
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, end_of_word_suffix="</w>", show_progress=False))
    return made


def plain_words():
    """Without a decoder tokens are joined by spaces."""
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
    return made


def cleaned():
    """A decoder that goes over the whole text in the end: nothing is certain before."""
    made = byte_level()
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(" .", ".")])
    return made


KINDS = {
    "llama": llama,
    "metaspace": metaspace,
    "byte level": byte_level,
    "WordPiece": word_piece,
    "WordPiece, not cleaned up": lambda: word_piece(cleanup=False),
    "word ends": word_ends,
    "plain words": plain_words,
    "cleaned": cleaned,
}


@cache
def tokenizer(kind: str) -> TokenizerFile | ByteTokenizer:
    if kind == "bytes":
        return ByteTokenizer(specials=("<bos>",))
    made = KINDS[kind]()
    made.add_special_tokens([SPECIAL])
    made.add_tokens([ADDED, "é́"])
    with TemporaryDirectory() as folder:
        made.save(str(Path(folder) / "tokenizer.json"))
        return TokenizerFile(folder)


def pieces(kind: str, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer(kind))
    return [*(stream.push(one) for one in ids), stream.finish()]


WORDS = [
    "the",
    "brother",
    " ",
    "  ",
    ".",
    "don't",
    " do not",
    "n't",
    ",",
    SPECIAL,
    ADDED,
    "é́",
    "日本",
    "🙂",
    "👩‍👩‍👧",
    "e\u0301",
    "\ufffd",
    "\n",
    "▁",
    "##s",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=12).map("".join)
EVERY = pytest.mark.parametrize("kind", [*KINDS, "bytes"])


@pytest.fixture(params=[1, 4, 64], autouse=True, scope="module")
def context(request):
    """Few ids, so that short texts too are long enough for the first ids to be forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tokenizers, "CONTEXT", request.param)
        yield


@EVERY
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
@example(text="au brother jumps")
@example(text="日本語 🙂 again")
def test_the_pieces_of_any_text_joined_are_the_text(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    assert "".join(pieces(kind, ids)) == tokenizer(kind).decode(ids)


@EVERY
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_so_are_those_of_any_ids(kind: str, data: st.DataObject) -> None:
    """A model may write bytes that are no text, and special tokens amid a character."""
    last = tokenizer(kind).vocab_size - 1
    ids = data.draw(st.lists(st.integers(0, last) | st.integers(max(0, last - 4), last), max_size=24))
    assert "".join(pieces(kind, ids)) == tokenizer(kind).decode(ids)


def test_bytes_that_are_no_text_replace_those_beside_them() -> None:
    made = tokenizer("llama")
    image, first, *rest = made[SPECIAL], *(made[f"<0x{byte:02X}>"] for byte in "é".encode())
    broken = [made["▁"], first, image, *rest, made["<0xFF>"]]
    assert pieces("llama", broken) == [""] * 5 + ["\ufffd" * 3]
    assert pieces("llama", [*broken[:-1], made["▁"], first]) == ["", "", "", "", "é ", "", "\ufffd"]


@pytest.mark.parametrize("kind", [kind for kind in [*KINDS, "bytes"] if kind != "cleaned"])
def test_text_comes_as_soon_as_it_is_certain(kind: str) -> None:
    ids = tokenizer(kind).encode("the brother and the dog again")
    found = pieces(kind, ids)
    assert found[-1] == ""
    assert all(found[1:-1]), "only the space that begins a text gives nothing"


def test_the_thousandth_byte_takes_no_longer_than_the_hundredth() -> None:
    class Counting(ByteTokenizer):
        num_decoded = 0

        def decode(self, ids) -> str:
            self.num_decoded += len(ids)
            return super().decode(ids)

    tokenizer = Counting()
    stream = TextStream(tokenizer)
    text = "日本語 again " * 200
    assert "".join(map(stream.push, tokenizer.encode(text))) == text
    assert tokenizer.num_decoded < 8 * text_tokenizers.CONTEXT * len(text.encode())


def test_a_stream_begins_anew_when_it_is_finished() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(97), stream.push(0xC3), stream.finish(), stream.push(98), stream.finish()] == ["a", "", "\ufffd", "b", ""]


def test_a_tokenizer_that_changes_what_it_gave_is_refused() -> None:
    class Fickle:
        vocab_size = 2

        def encode(self, text: str) -> list[int]:
            return [int(c) for c in text]

        def decode(self, ids) -> str:
            return str(sum(ids)) * len(ids)

    stream = TextStream(Fickle())
    stream.push(1)
    with pytest.raises(ValueError, match=r"Fickle made '1' of the first ids and '22' of more.*num_settled"):
        stream.push(1)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_segments_joined_are_the_whole_segment(kind: str) -> None:
    made = tokenizer(kind)
    ids, going, done = made.encode("au brother jumps 🙂"), State("text"), State("done")
    steps = [Step(torch.tensor([i]), (going,), (going,), {}) for i in ids] + [Step(torch.tensor([0]), (going,), (done,), {})]
    grammar = TextGrammar(made.vocab_size, stop=(0,))
    (whole,) = segments_of(steps, grammar, tokenizer=made)
    found = list(segments_of(steps, grammar, tokenizer=made, stream=True))
    assert "".join(str(segment.content) for _, segment in found) == whole.segment.content == made.decode(ids)
    assert len(found) > 2 or kind == "cleaned"
