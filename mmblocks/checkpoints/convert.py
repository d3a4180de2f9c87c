"""From one layout to another, file by file: neither end is ever in memory as a whole, and a run that was killed goes on.

Everything is written to a folder beside the target, called ``.<target>.converting``, which then takes the target's place. Its files
appear in one step each, so that whatever is there is complete; ``source.json`` in it says what it is being made of.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints import filling, load, save, tensors, upstream
from mmblocks.checkpoints.files import folders, leftovers, shards
from mmblocks.checkpoints.hub import locating
from mmblocks.checkpoints.origin import Place
from mmblocks.configurable import Configurable

OWN = "mmblocks"
"""What ``to`` is for a folder as ``save_pretrained`` writes it."""

_NOTE = "source.json"


def convert(
    cls: type[Configurable],
    source: str | Path,
    target: str | Path,
    *,
    to: str = OWN,
    layout: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    finished: Callable[[str, int, int], None] | None = None,
) -> Configurable:
    """Writes ``source`` to the folder ``target`` in another layout. Every file is read again and compared.

    A run that was killed left its files beside the target; the same call goes on with them.

    Args:
        cls: the class that reads the source; Block finds it by itself where ``save_pretrained`` wrote the source.
        source: as ``Block.from_pretrained`` takes it.
        target: the folder to write.
        to: ``"mmblocks"``, or the name of one of the class's layouts.
        layout: the layout of the source, where it shall not be detected.
        subfolder: convert the part in this subfolder alone.
        revision: of a repository on the Hub.
        dtype: cast floating-point tensors.
        max_shard_size: of one file.
        force: replace a target that is there.
        finished: called after each file with its name, its number and how many there are in its folder.

    Returns:
        The Block, without values, whose ``origin`` says which layout was found.

    Raises:
        FileExistsError: the target is there already; or another process converts to it right now.
        ValueError, TypeError, OSError: as ``Block.from_pretrained``.
    """
    shards.check_size(max_shard_size)
    target = Path(os.path.realpath(target))
    if not force and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; force replaces it")
    place = locating.locate(cls, source, subfolder=subfolder, revision=revision, layout=layout)
    block, jobs = load.open_place(place, {})
    filling.compare_all(jobs, set())
    read = _reader(jobs, dtype)
    beside = target.with_name(f".{target.name}.converting")
    target.parent.mkdir(parents=True, exist_ok=True)
    with leftovers.alone(target, "converts to"):
        _start(beside, _note(place, block, to, dtype, max_shard_size))
        if to == OWN:
            for name, content in save.plan(block, read=read).items():
                save.write_folder(content, beside / name, max_shard_size, finished)
        else:
            upstream.write_folder(block, upstream.choose(block, to), beside, read, max_shard_size, finished)
        for job in jobs:
            if job.check is not None:
                job.check(True)
        (beside / _NOTE).unlink()
        folders.put(beside, target)
        shutil.rmtree(beside, ignore_errors=True)  # the old content, if there was any
    return block


def _reader(jobs: list[filling.Job], dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Gives the values of each tensor of a Block without values."""
    places = {id(job.slots[key].tensor): (job, source) for job in jobs for key, source in job.sources.items()}

    def read(placeholder: Tensor) -> Tensor:
        job, source = places[id(placeholder)]
        return filling.placed(source.read(job.stored), dtype, torch.device("cpu"))

    return read


def _start(beside: Path, note: dict[str, Any]) -> None:
    """Keeps what an earlier run of the same conversion has written, and nothing else."""
    text = json.dumps(note, sort_keys=True)
    file = beside / _NOTE
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        part = beside / f"{_NOTE}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    for part in beside.rglob("*.part"):
        part.unlink()


def _note(place: Place[Any], block: Configurable, *options: object) -> dict[str, Any]:
    """What the result depends on: the files, told by their sizes and times, and the options."""
    path = place.path.resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    times = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    digest = hashlib.sha256(json.dumps([times, str(block.origin), type(block).__qualname__, list(map(str, options))]).encode())
    return {"source": str(path), "checksum": digest.hexdigest(), "tensors": len(tensors.slots(block))}
