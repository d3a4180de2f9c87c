"""Text tokenizers of a few hundred pieces, as checkpoint folders hold them."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "USER: what is this? ASSISTANT: a black cat on the mat. You are a helpful assistant. hello world, draw it!"


def byte_level(specials: list[str], vocab_size: int = 300) -> Tokenizer:
    """A byte-level tokenizer like GPT-2's and Qwen's; special ids come last."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    made.add_special_tokens(specials)
    return made


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """The folder, with ``tokenizer.json`` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
