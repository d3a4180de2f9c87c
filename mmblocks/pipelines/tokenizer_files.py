"""Text tokenizers as models ship them: ``tokenizer.json``, ``.tiktoken``, or what transformers' own classes read."""

from collections.abc import Mapping
from pathlib import Path

from mmblocks.vocabulary.text_tokenizers import TextTokenizer, TokenizerFile
from mmblocks.vocabulary.tiktoken_files import tiktoken_tokenizer

SMALL = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
"""Files that tokenizers consist of."""


def text_tokenizer(place: str | Path, specials: Mapping[str, int], revision: str | None = None) -> TextTokenizer:
    """The text tokenizer of a folder, or of a repository of the Hub, of which its files alone are downloaded.

    Args:
        place: the folder, or ``organisation/name``.
        specials: names and ids of special tokens that the files do not hold; a ``.tiktoken`` file holds none.
        revision: on the Hub.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ValueError: a file that is none.
    """
    folder = Path(place)
    if folder.exists() or not isinstance(place, str):
        return local_tokenizer(folder, specials)
    from mmblocks.checkpoints.hub import repository as hub

    found = hub.split_id(place)
    if found is None:
        raise FileNotFoundError(f"no such folder: {folder}; accepted: a folder, or organisation/name on the Hub")
    repository = hub.find(found[0], revision)
    names = [name for name in repository.folder(found[1]) if name in SMALL or name.endswith(".tiktoken")]
    if not names:
        raise FileNotFoundError(f"{place} holds no text tokenizer; accepted: {_ACCEPTED}, or text_tokenizer=")
    files = [repository.get(f"{found[1]}/{name}".lstrip("/")) for name in names]
    return local_tokenizer(files[0].parent, specials)


_ACCEPTED = "tokenizer.json, a .tiktoken file, or tokenizer.model"


def local_tokenizer(folder: Path, specials: Mapping[str, int]) -> TextTokenizer:
    """The text tokenizer of a folder."""
    if (folder / "tokenizer.json").is_file():
        return with_specials(TokenizerFile(folder), specials)
    if ranks := sorted(folder.glob("*.tiktoken")):
        return TokenizerFile.of(tiktoken_tokenizer(ranks[0], specials))
    if not any((folder / name).is_file() for name in SMALL):
        raise FileNotFoundError(f"{folder} holds no text tokenizer; accepted: {_ACCEPTED}, or text_tokenizer=")
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
    return with_specials(TokenizerFile.of(found), specials)


def with_specials(tokenizer: TokenizerFile, specials: Mapping[str, int]) -> TokenizerFile:
    """The tokenizer with special tokens that its authors add when they run it.

    Raises:
        ValueError: the vocabulary's next ids are not those of the tokens that it lacks, or it has one at another id.
    """
    known = tokenizer.vocabulary
    lacking = sorted((index, name) for name, index in specials.items() if name not in known)
    made = tokenizer.extended([name for _, name in lacking]) if lacking else tokenizer
    wrong = {name: made[name] for name, index in specials.items() if made[name] != index}
    if wrong:
        name, index = next(iter(wrong.items()))
        raise ValueError(f"{name!r} has the id {index} in this text tokenizer; accepted for this model: {specials[name]}")
    return made
