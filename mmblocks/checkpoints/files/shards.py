"""Writing tensors to one safetensors file, or to several with an index, one file in memory at a time."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_SIZE = re.compile(r"\d+(\.\d+)? *[KMGT]B", re.IGNORECASE)


def check_size(max_shard_size: int | str) -> None:
    """Refuses what is no size of a file.

    Raises:
        ValueError: see above.
    """
    sound = max_shard_size > 0 if isinstance(max_shard_size, int) else _SIZE.fullmatch(max_shard_size.strip())
    if not sound:
        raise ValueError(f"max_shard_size is {max_shard_size!r}; accepted: bytes, or a number with KB, MB, GB or TB, such as 5GB")


def write(
    folder: Path,
    meta: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    max_shard_size: int | str,
    finished: Callable[[str, int, int], None] | None = None,
    stem: str = "model",
) -> None:
    """Writes ``model.safetensors`` or shards. A file that is there already is taken to be complete, as each appears in one step.

    Where there is no tensor, the file is empty: it says that none is lacking.

    Args:
        folder: where to.
        meta: what the tensors look like; only sizes count here, so that views of one storage are tensors of their own.
        read: gives a tensor's values.
        max_shard_size: of one file, such as ``"5GB"``.
        finished: called after each file with its name, its number and how many there are; before that the file is read again and
            compared.
        stem: the name of the file without its ending; that of shards begins so.

    Raises:
        ValueError: a size that is none.
    """
    check_size(max_shard_size)
    sizes = {key: torch.empty_like(tensor, device="meta") for key, tensor in meta.items()}
    pattern = f"{stem}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size, filename_pattern=pattern)
    files = split.filename_to_tensors or {pattern.format(suffix=""): []}
    for number, (name, keys) in enumerate(files.items(), start=1):
        if not (folder / name).exists():
            beside = folder / f"{name}.part"
            save_file(_packed({key: read(key) for key in keys}), beside, metadata={"format": "pt"})
            if finished is not None:
                _compare(beside, keys, read)
            os.replace(beside, folder / name)
        if finished is not None:
            finished(name, number, len(files))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _compare(file: Path, keys: list[str], read: Callable[[str], Tensor]) -> None:
    with safe_open(file, framework="pt", device="cpu") as written:
        for key in keys:
            tensor = read(key).to("cpu").contiguous()
            same = written.get_tensor(key).reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
            if not same:
                raise OSError(f"{file}: {key} was not written as it was read")


def _packed(shard: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each tensor in a storage of its own, which safetensors insists on."""
    packed: dict[str, Tensor] = {}
    storages = set()
    for key, tensor in shard.items():
        packed[key] = tensor.to("cpu").contiguous()
        storage = packed[key].untyped_storage()
        if storage.nbytes() > tensor.nbytes or storage.data_ptr() in storages:
            packed[key] = packed[key].clone()
        storages.add(storage.data_ptr())
    return packed
