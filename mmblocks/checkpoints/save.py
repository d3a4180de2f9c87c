"""Writing a Block: what goes into which folder is settled, and every check made, before anything is written."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints import classes, config, tensors, write


class Folder(NamedTuple):
    """What one Block writes: its config.json, and the tensors that belong to none of the Blocks it was given."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def save(block: Block, folder: Path, max_shard_size: int | str) -> None:
    """Replaces ``folder`` by one that holds the Block; see ``Block.save_pretrained``."""
    folders = plan(block)
    with write.replacing(folder) as temporary:
        for subfolder, content in folders.items():
            _write(content, temporary / subfolder, max_shard_size)


def plan(block: Block, subfolder: str = "") -> dict[str, Folder]:
    """What to write, by subfolder.

    Raises:
        TypeError: an argument that cannot be written.
        ValueError: a tensor without values here, or a part that the config does not know to have been replaced.
    """
    arguments, blocks = config.encode(block)
    _check_kept(block, blocks)
    shared = tensors.shared(block)
    own = {key: slot.tensor.detach() for key, slot in tensors.own_slots(block).items() if key not in shared}
    _check_values(block, own)

    cls, _ = block._built
    head: dict[str, Any] = {config.CLASS: classes.name_of(cls), config.VERSION: _version()}
    if shared:
        head[config.SHARED] = shared
    folders = {subfolder: Folder(head | arguments, own)}
    for path, part in blocks.items():
        folders |= plan(part, f"{subfolder}/{path}".removeprefix("/"))
    return folders


def _check_kept(block: Block, blocks: dict[str, Block]) -> None:
    inside = {id(module) for module in block.modules()}
    for path, part in blocks.items():
        if id(part) not in inside:
            raise ValueError(
                f"{type(block).__name__} cannot be saved: the {type(part).__name__} it was given as {path!r} is not in it any more."
                f" Keep a part under the argument's name (self.{path.partition('/')[0]}), so that replacing it is seen"
            )


def _check_values(block: Block, own: dict[str, Tensor]) -> None:
    for key, tensor in own.items():
        if tensor.is_meta:
            raise ValueError(f"{type(block).__name__} cannot be saved: {key} is on the meta device and has no values")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"{type(block).__name__} cannot be saved: {key} is sharded over processes; gather it first")


def _write(content: Folder, folder: Path, max_shard_size: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content.config, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / config.FILE).write_text(text + "\n", encoding="utf-8")
    if not content.tensors:
        return
    # Only sizes count here: views of one storage are tensors of their own.
    sizes = {key: torch.empty_like(tensor, device="meta") for key, tensor in content.tensors.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    for name, keys in split.filename_to_tensors.items():
        shard = {key: content.tensors[key] for key in keys}
        save_file(_packed(shard), folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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


def _version() -> str:
    try:
        return version("mmblocks")
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
