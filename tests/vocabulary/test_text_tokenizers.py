import pytest

from mmblocks.vocabulary.text_tokenizers import ByteTokenizer, TokenizerFile


@pytest.mark.parametrize("text", ["", "a seven", "日本語 ½", "<bos>"])
def test_bytes_come_back_as_text(text: str) -> None:
    tokenizer = ByteTokenizer(specials=("<bos>", "<eos>"))
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode([tokenizer["<bos>"], *ids, tokenizer["<eos>"]]) == text


def test_specials_follow_the_bytes() -> None:
    tokenizer = ByteTokenizer(specials=("<bos>", "<eos>"))
    assert (tokenizer["<bos>"], tokenizer["<eos>"], tokenizer.vocab_size) == (256, 257, 258)


def test_ids_out_of_range_and_unknown_or_double_specials_are_refused() -> None:
    tokenizer = ByteTokenizer(specials=("<bos>",))
    with pytest.raises(ValueError, match=r"ids holds 257; accepted: \[0, 256\]"):
        tokenizer.decode([257])
    with pytest.raises(KeyError, match="<eos>"):
        tokenizer["<eos>"]
    with pytest.raises(ValueError, match="names that differ"):
        ByteTokenizer(specials=("<a>", "<a>"))


def test_a_hugging_face_tokenizer_file(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "seven": 1, "<unk>": 2}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<bos>"])
    made.save(str(tmp_path / "tokenizer.json"))

    tokenizer = TokenizerFile(tmp_path)
    assert tokenizer.encode("a seven a") == [0, 1, 0]
    assert tokenizer.decode([3, 0, 1]) == "a seven"
    assert (tokenizer["<bos>"], tokenizer.vocab_size) == (3, 4)
    with pytest.raises(KeyError, match="eight"):
        tokenizer["eight"]


def test_a_missing_tokenizer_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        TokenizerFile(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE", "vocab": 3}}', "\0"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content: str) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer's file: "):
        TokenizerFile(tmp_path)


@pytest.mark.parametrize("ids", [[0, -1], [2**32]])
def test_ids_that_no_vocabulary_has_are_refused(tmp_path, ids: list[int]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="ids holds one of"):
        TokenizerFile(tmp_path).decode(ids)
