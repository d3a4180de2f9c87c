"""Pickled files of tensors, as ``torch.save`` writes them: read without running what they say."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.checkpoints.files.mapped import Entry

LARGEST_PICKLE = 16 * 2**20
"""Bytes of the pickle itself, which holds names and shapes; a thousand tensors take about two hundred thousand."""


def open_pickle(file: Path, unwrap: str | None) -> dict[str, Entry]:
    """The tensors of a file, mapped into memory.

    Args:
        file: the file.
        unwrap: the key under which it holds them, with dots where it is nested; None for its top. Of several, with ``|`` between
            them, the first that is there counts; an empty one is the top.

    Raises:
        ValueError: the file is broken, or holds anything but tensors there, or tensors larger than their data.
    """
    _check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is refused by the next line
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # A broken pickle can make the unpickler fail in any way.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read as plain tensors; convert it to safetensors at its source: {reason}") from error
    content = next((found for found in (_under(content, keys) for keys in (unwrap or "").split("|")) if found is not None), None)
    where = f"{file} under {unwrap!r}" if unwrap else f"{file}"
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a dict of tensors, but found {type(content).__name__}")
    return {key: _entry(where, key, tensor) for key, tensor in content.items()}


def _under(content: object, keys: str) -> object:
    """What lies under keys with dots between them; None where nothing does."""
    for key in keys.split(".") if keys else ():
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _check_archive(file: Path) -> None:
    """torch stores its archives as they are; a compressed one could hold a thousand times what its size tells."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    # zipfile itself raises NotImplementedError, for features of archives that it does not read.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(
            f"{file} cannot be read as plain tensors; convert it to safetensors at its source: no archive of torch.save: {error}"
        ) from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{file} cannot be read as plain tensors: {member.filename} is compressed, which torch.save never does"
            )
        if member.filename.endswith(".pkl") and member.file_size > LARGEST_PICKLE:
            raise ValueError(f"{file} cannot be read as plain tensors: its pickle has {member.file_size} bytes")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise ValueError(f"{file} cannot be read as plain tensors: its entries overlap")


def _entry(where: str, key: object, tensor: object) -> Entry:
    if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{where}: entry {key!r} is a {type(tensor).__name__}; expected names and dense tensors alone")
    if tensor.is_meta:
        raise ValueError(f"{where}: {key} has no values")
    # A file of a kilobyte can claim a tensor of a terabyte, each of whose elements is the same one.
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where}: {key} of shape {tuple(tensor.shape)} is larger than its data")
    return Entry(torch.empty_like(tensor, device="meta"), lambda: tensor.detach())
