"""Checksums of what a Block writes, so that what is loaded is what was saved.

Each folder's config.json holds them as ``_checksums``: one of the folder's own tensors and of which of them are shared, and one
for each Block inside, by the argument that holds it. They are compared when the folder is loaded, which reads every byte once.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import mapped

NAME = config.CHECKSUMS


def of_folder(tensors: Mapping[str, Tensor], shared: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, Any]:
    """What goes into a folder's config.

    Args:
        tensors: the folder's own.
        shared: names of tensors that are not stored -> the name under which they are.
        parts: argument -> ``seal`` of the Block inside.
    """
    return {"tensors": of_tensors(tensors, shared), "parts": dict(parts)}


def of_tensors(tensors: Mapping[str, Tensor], shared: Mapping[str, str], forgetting: bool = False) -> str:
    """SHA-256 over names, shapes, dtypes and values, whatever the order; and over which names are shared.

    With ``forgetting`` the tensors are mapped from files, and the memory of what has been read of them is given back.
    """
    reading = Lock()

    def digest(key: str) -> str:
        with reading:
            tensor = tensors[key]
        return of_tensor(tensor, forgetting)

    # Hashing lets other threads run. Each has one tensor on the CPU at a time.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        digests = dict(zip(tensors, pool.map(digest, tensors), strict=True))
    return _of_json([sorted(digests.items()), sorted(shared.items())])


def of_tensor(tensor: Tensor, forgetting: bool = False) -> str:
    """SHA-256 of one tensor's shape, dtype and values."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    for piece in mapped.pieces(tensor.detach().cpu().contiguous()):
        if piece.numel():
            found.update(piece.view(torch.uint8).numpy().data)
        if forgetting:
            mapped.forget(piece)
    return found.hexdigest()


def seal(content: Mapping[str, Any]) -> str:
    """Stands for all the tensors in and below a folder, given its config."""
    return _of_json(content.get(NAME))


def check(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Any]],
    skipped: set[str],
    title: str,
    forgetting: bool = False,
) -> None:
    """Compares a folder with the checksums in its config; a folder without any passes.

    Args:
        content: the config of the folder.
        tensors: what the folder holds.
        parts: argument -> the config of the Block inside.
        skipped: arguments that were handed in instead of loaded.
        title: what the folder is called in an error.
        forgetting: as for ``of_tensors``.

    Raises:
        ValueError: they differ.
    """
    expected = content.get(NAME)
    if expected is None:
        return
    advice = f"the files are damaged, or were changed since; if on purpose, remove {NAME!r} from {config.FILE}"
    if not isinstance(expected, dict) or not isinstance(expected.get("parts"), dict):
        raise ValueError(f"{title}: {NAME!r} makes no sense: {advice}")
    for place, found in parts.items():
        if expected["parts"].get(place) != seal(found):
            raise ValueError(f"{title}: the checksum of the part {place!r} does not match: {advice}")
    lost = [place for place in expected["parts"] if place not in parts and place.partition("/")[0] not in skipped]
    if lost:
        raise ValueError(f"{title}: checksums name the part {lost[0]!r}, which is not there: {advice}")
    if of_tensors(tensors, config.shared(content), forgetting) != expected.get("tensors"):
        raise ValueError(f"{title}: the checksum of the tensors does not match: {advice}")


def _of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
