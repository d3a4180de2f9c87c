"""A set of images as files of tokens: ``tokens-00000.safetensors`` and so on, one tensor per image under the image's name.

Each file appears in one step, and says in its metadata which images it was made of: a run that was killed goes on with the first
that is missing, and a file of other images is made anew.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmblocks.block import Block
from mmblocks.checkpoints import checksums
from mmblocks.cli import pictures

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class _Image(NamedTuple):
    name: str
    tar: Path | None
    file: Path
    size: int


def write(
    block: Block,
    images: Path,
    target: Path,
    size: int | None,
    shard_size: int,
    device: torch.device,
    at: Callable[[int, int], None],
) -> dict[str, Any]:
    """Tokenizes all images and says how many there are.

    Raises:
        FileNotFoundError: there is no image.
        TypeError: the Block is no tokenizer.
        ValueError: a file that is no image; the message names it.
    """
    tokenizer = pictures.check_tokenizer(block)
    found = list(_images(images))
    if not found:
        raise FileNotFoundError(f"{images} holds no images; accepted: {', '.join(IMAGES)}, or .tar files of them")
    target.mkdir(parents=True, exist_ok=True)
    weights = checksums.of_tensors(block.state_dict(), {})
    groups = [found[start : start + shard_size] for start in range(0, len(found), shard_size)]
    for number, group in enumerate(groups):
        file = target / f"tokens-{number:05d}.safetensors"
        mark = hashlib.sha256(json.dumps([weights, size, [[i.name, i.size] for i in group]]).encode()).hexdigest()
        if _mark(file) != mark:
            tokens = {image.name: _tokens(tokenizer, image, size, device) for image in group}
            beside = file.with_name(f".{file.name}.{os.getpid()}")
            save_file(tokens, beside, metadata={"made_of": mark})  # one entry: the order of several is not fixed
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, file)
        at(min((number + 1) * shard_size, len(found)), len(found))
    for number in range(len(groups), 100_000):  # of a run with more images
        stale = target / f"tokens-{number:05d}.safetensors"
        if not stale.exists():
            break
        stale.unlink()
    return {"num_images": len(found), "num_shards": len(groups), "target": str(target)}


def _images(path: Path) -> Iterator[_Image]:
    if path.is_file():
        yield from _inside(path, path.parent)
        return
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in IMAGES and file.is_file():
            yield _Image(file.relative_to(path).as_posix(), None, file, file.stat().st_size)
        elif file.suffix == ".tar":
            yield from _inside(file, path)


def _inside(tar: Path, root: Path) -> Iterator[_Image]:
    try:
        with tarfile.open(tar) as archive:
            members = [member for member in archive if member.isfile() and member.name.lower().endswith(IMAGES)]
    except tarfile.TarError as error:
        raise ValueError(f"{tar} cannot be read as a .tar file: {error}") from error
    for member in members:
        yield _Image(f"{tar.relative_to(root).as_posix()}/{member.name}", tar, Path(member.name), member.size)


@torch.no_grad()
def _tokens(tokenizer: Any, image: _Image, size: int | None, device: torch.device) -> torch.Tensor:
    if image.tar is None:
        opened = pictures.opened(image.file, image.name, size)
    else:
        with tarfile.open(image.tar) as archive:
            opened = pictures.opened(archive.extractfile(image.file.as_posix()), image.name, size)
    latents = tokenizer.encode(tokenizer.preprocess(opened).to(device)[None])
    tokens = latents.z if latents.ids is None else latents.ids
    return tokens[0].cpu().contiguous()


def _mark(file: Path) -> str | None:
    """What a file was made of; None where it is not there, or broken."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("made_of")
    except (SafetensorError, OSError):
        return None
