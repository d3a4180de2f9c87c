"""A set of images or clips as files of tokens: ``tokens-00000.safetensors`` and so on, one tensor per sample under its name.

All is written to a folder beside the target, called ``.<target>.tokenizing``, which then takes the target's place: whoever reads
sees the tokens of one run. Each file in it appears in one step, and says in its metadata what it was made of: a run that was
killed goes on with the first that is missing, and what the target holds of the same samples is taken over.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.files import checksums, folders, leftovers
from mmblocks.cli import pictures, samples
from mmblocks.cli.samples import Sample

_SHARD = re.compile(r"tokens-\d{5,}\.safetensors")


def tokenize(
    block: Block,
    source: Path,
    target: Path,
    size: int | None,
    shard_size: int,
    device: torch.device,
    at: Callable[[int, int], None],
    *,
    clips: bool = False,
) -> dict[str, Any]:
    """Tokenizes all images, or all clips, and says how many there are.

    Raises:
        FileExistsError: another process writes to the target right now.
        FileNotFoundError: there is no image.
        NotADirectoryError: the target is a file.
        TypeError: the Block is no tokenizer.
        ValueError: a file that is no image, or that the tokenizer does not take; the message names it.
    """
    tokenizer = pictures.check_tokenizer(block)
    found = check_places(source, target, clips=clips)
    target = Path(os.path.realpath(target))
    beside = target.with_name(f".{target.name}.tokenizing")
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = checksums.of_tensors(block.state_dict(), {})
    groups = [found[start : start + shard_size] for start in range(0, len(found), shard_size)]
    marks = {f"tokens-{number:05d}.safetensors": _made_of(weights, size, group) for number, group in enumerate(groups)}
    with leftovers.alone(target, "writes tokens to"):
        if not _is_complete(target, marks):
            _start(beside, target, marks)
            for number, (name, group) in enumerate(zip(marks, groups, strict=True), start=1):
                if not (beside / name).exists():
                    _write(beside / name, {one.name: _tokens(tokenizer, one, size, device) for one in group}, marks[name])
                at(min(number * shard_size, len(found)), len(found))
            folders.put(beside, target, stale=_SHARD)
        shutil.rmtree(beside, ignore_errors=True)  # the old content, if there was any
    return {"num_clips" if clips else "num_images": len(found), "num_shards": len(groups), "target": str(target)}


def check_places(source: Path, target: Path, *, clips: bool) -> list[Sample]:
    """What there is to tokenize.

    Raises:
        FileNotFoundError: there is no image.
        NotADirectoryError: the target is a file, or lies in one.
        ValueError: a file that is no .tar file; two samples of one name.
    """
    if not source.exists():
        raise FileNotFoundError(f"no such folder: {source}; accepted: a folder of images, or a .tar file of them")
    found = samples.clips(source) if clips else samples.images(source)
    if not found:
        raise FileNotFoundError(f"{source} holds no images; accepted: {', '.join(samples.IMAGES)}, or .tar files of them")
    _check_names(found)
    place = Path(os.path.realpath(target))
    for folder in (place, *place.parents):
        if folder.exists() and not folder.is_dir():
            what = "it" if folder == place else str(folder)
            raise NotADirectoryError(f"cannot write tokens to {target}: {what} is not a folder")
    return found


def _check_names(found: list[Sample]) -> None:
    """One would replace the other in a file of tokens."""
    for first, second in pairwise(sorted(sample.name for sample in found)):
        if first == second:
            raise ValueError(f"two samples are called {first!r}; accepted: names of their own")


def _made_of(weights: str, size: int | None, group: list[Sample]) -> str:
    return hashlib.sha256(json.dumps([weights, size, [sample.mark for sample in group]]).encode()).hexdigest()


def _is_complete(target: Path, marks: dict[str, str]) -> bool:
    shards = [file.name for file in target.iterdir() if _SHARD.fullmatch(file.name)] if target.is_dir() else []
    return set(shards) == set(marks) and all(_mark(target / name) == marks[name] for name in shards)


def _start(beside: Path, target: Path, marks: dict[str, str]) -> None:
    """Keeps what an earlier run left of the same tokens, takes over what the target has of them, and drops the rest."""
    beside.mkdir(exist_ok=True)
    for file in beside.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name not in marks or _mark(file) != marks[file.name]:
            file.unlink()
    for name, mark in marks.items():
        if not (beside / name).exists() and _mark(target / name) == mark:
            folders.link(target / name, beside / name)


def _write(file: Path, tokens: dict[str, Tensor], mark: str) -> None:
    part = file.with_name(f"{file.name}.part")
    save_file(tokens, part, metadata={"made_of": mark})  # one entry: the order of several is not fixed
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, file)


@torch.no_grad()
def _tokens(tokenizer: pictures.ImageTokenizer, sample: Sample, size: int | None, device: torch.device) -> Tensor:
    images = sample.images(size)
    try:
        frames = [tokenizer.preprocess(image) for image in images]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("its frames are of several sizes")
        pixels = torch.stack(frames, dim=1) if sample.is_clip else frames[0]
        latents = tokenizer.encode(pixels.to(device)[None])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{sample.name} cannot be tokenized: {error}") from error
    tokens = latents.z if latents.ids is None else latents.ids
    return tokens[0].cpu().contiguous()


def _mark(file: Path) -> str | None:
    """What a file was made of; None where it is not there, or broken."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("made_of")
    except (SafetensorError, OSError):
        return None
