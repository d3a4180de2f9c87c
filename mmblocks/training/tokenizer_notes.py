"""``trainer.json``: what a training is besides tensors, and the checksums of every file that was saved with it.

Format 1 had no checksums. Such a folder is still read, and its optimizer is taken as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import untrusted
from mmblocks.training.tokenizer_recipe import TokenizerRecipe, check_types

FILE = "trainer.json"
PARTS = ("tokenizer", "discriminator")
"""Subfolders of what is trained; the first is always there."""

_FORMAT = 2
_UNCHECKED = 1
"""The format without checksums."""

_FILES, _CHECKSUM = "files", "checksum"


class Notes(NamedTuple):
    """What a training is besides tensors.

    Attributes:
        recipe: losses, weights and schedules.
        num_steps, num_skipped: batches so far.
        device: the kind it ran on.
        codebook_is_laid: whether k-means has been run, or is not to be.
        batches_counted: in the window of ``CodeUsage``.
        perceptual: whether there is a perceptual loss.
        frozen: part -> names of parameters that do not learn.
    """

    recipe: TokenizerRecipe
    num_steps: int
    num_skipped: int
    device: str
    codebook_is_laid: bool
    batches_counted: int
    perceptual: bool
    frozen: dict[str, list[str]]


def write(folder: Path, notes: Notes) -> None:
    """Writes them into a folder that holds all other files already."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content: dict[str, Any] = {"format": _FORMAT, **notes._asdict(), "recipe": notes.recipe.settings()}
    content[_FILES] = {file.relative_to(folder).as_posix(): _of_file(file) for file in files}
    content[_CHECKSUM] = _of_json(content)
    (folder / FILE).write_bytes(_text(content))


def read(folder: Path) -> Notes:
    """What ``write`` wrote, once every file is found to be what was saved.

    Raises:
        FileNotFoundError: no trainer was saved there, or a file is gone.
        ValueError: a file is not what was saved; the message names it.
    """
    file = folder / FILE
    content = untrusted.read_object(folder, FILE, unique=True)
    if content is None:
        raise FileNotFoundError(f"{folder} holds no training to resume: it has no {FILE}")
    number = content.pop("format", None)
    if type(number) is not int or number not in (_UNCHECKED, _FORMAT):
        raise ValueError(f"{file} has format {number!r:.200}; accepted: {_UNCHECKED} or {_FORMAT}")
    files: object = {}
    if number == _FORMAT:
        # The checksum covers what the text means; that it is written as it was is compared beside it.
        is_as_written = file.read_bytes() == _text({"format": number, **content})
        checksum = content.pop(_CHECKSUM, None)
        if not is_as_written or checksum != _of_json({"format": number, **content}):
            raise ValueError(f"{file} is damaged, or was changed since: its checksum does not match")
        files = content.pop(_FILES, None)
    notes = _checked(content, file)
    if number == _FORMAT:
        _check_files(folder, files)
    return notes


def _checked(content: Mapping[str, Any], file: Path) -> Notes:
    if set(content) != set(Notes._fields):
        odd = ", ".join(sorted(set(content) ^ set(Notes._fields)))
        raise ValueError(f"{file}: missing or unknown entries: {odd:.200}")
    for name in ("num_steps", "num_skipped", "batches_counted"):
        if type(content[name]) is not int or not 0 <= content[name] < 2**53:
            raise ValueError(f"{file}: {name} is {content[name]!r:.200}; accepted: an integer of at least 0")
    for name in ("codebook_is_laid", "perceptual"):
        if type(content[name]) is not bool:
            raise ValueError(f"{file}: {name} is {content[name]!r:.200}; accepted: true or false")
    if not isinstance(content["device"], str):
        raise ValueError(f"{file}: device is {content['device']!r:.200}; accepted: a kind of device")
    _check_frozen(content["frozen"], file)
    recipe = content["recipe"]
    try:
        betas = recipe["betas"]
        recipe = {**recipe, "betas": tuple(betas) if isinstance(betas, list) else betas}  # JSON knows lists only
        check_types(recipe)
        found = TokenizerRecipe(**recipe)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: recipe is none: {error}") from error
    return Notes(**{**content, "recipe": found})


def _check_frozen(frozen: object, file: Path) -> None:
    """Its keys are names of folders."""
    sound = isinstance(frozen, dict) and PARTS[0] in frozen and set(frozen) <= set(PARTS)
    if not isinstance(frozen, dict) or not sound or not all(_are_names(names) for names in frozen.values()):
        raise ValueError(f"{file}: frozen is {frozen!r:.200}; accepted: lists of names, for {' and '.join(PARTS)}")


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _check_files(folder: Path, files: object) -> None:
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{folder / FILE}: {_FILES} is {files!r:.200}; accepted: an object of checksums")
    for name, expected in files.items():
        file = folder / config.checked_subfolder(name, f"{folder / FILE}: {_FILES}")
        if not file.is_file():
            raise FileNotFoundError(f"{folder / FILE} names {name!r}, which is not there")
        if _of_file(untrusted.inside(file.parent, file, f"{file.parent} holds {file.name!r}")) != expected:
            raise ValueError(f"{file} is damaged, or was changed since it was saved: its checksum does not match")


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _of_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
