"""Writing a Block: what goes into which folder is settled, and every check made, before anything is written."""

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from mmblocks.checkpoints import config, tensors
from mmblocks.checkpoints.files import checksums, folders, shards
from mmblocks.configurable import Configurable, name_of


class Folder(NamedTuple):
    """What one Block writes.

    Attributes:
        config: its config.json.
        tensors: those that belong to none of the Blocks it was given; on the meta device where they are read when they are written.
        read: gives the values of such a tensor.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    read: Callable[[Tensor], Tensor]


@runtime_checkable
class _Sharded(Protocol):
    """A ``DTensor``, whose module takes long to import."""

    def full_tensor(self) -> Tensor: ...


class Values(Mapping[str, Tensor]):
    """Tensors of which each is read on demand."""

    def __init__(self, tensors: Mapping[str, Tensor], read: Callable[[Tensor], Tensor]) -> None:
        self._tensors = tensors
        self._read = read

    def __getitem__(self, key: str) -> Tensor:
        return self._read(self._tensors[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def save(block: Configurable, folder: Path, max_shard_size: int | str) -> None:
    """Replaces ``folder`` by one that holds the Block; see ``Block.save_pretrained``."""
    planned = plan(block)
    with folders.replacing(folder) as temporary:
        for subfolder, content in planned.items():
            write_folder(content, temporary / subfolder, max_shard_size)


def plan(block: Configurable, subfolder: str = "", read: Callable[[Tensor], Tensor] | None = None) -> dict[str, Folder]:
    """What to write, by subfolder.

    Args:
        block: the Block.
        subfolder: where it goes.
        read: for a Block without values: gives those of each of its tensors. They are read once for the checksums, and once more
            when they are written.

    Raises:
        TypeError: an argument that cannot be written.
        ValueError: a tensor without values here, or a part that the config does not know to have been replaced.
    """
    arguments, blocks = config.encode(block)
    _check_kept(block, blocks)
    shared = tensors.shared(block)
    own = {key: slot.tensor for key, slot in tensors.own_slots(block).items() if key not in shared}
    if read is None:
        _check_values(block, own)

    inside: dict[str, Folder] = {}
    for path, part in blocks.items():
        inside |= plan(part, f"{subfolder}/{path}".removeprefix("/"), read)
    cls, _ = block._built
    content: dict[str, Any] = {config.CLASS: name_of(cls), config.VERSION: _version()}
    if block.origin is not None:
        content[config.ORIGIN] = block.origin.to_json()
    if shared:
        content[config.SHARED] = shared
    content |= arguments
    seals = {
        place: checksums.seal(inside[f"{subfolder}/{name}".removeprefix("/")].config)
        for place, name in config.places(content).items()
    }
    content[config.CHECKSUMS] = checksums.of_folder(Values(own, read or Tensor.detach), shared, seals)
    return {subfolder: Folder(content, own, read or Tensor.detach), **inside}


def _check_kept(block: Configurable, blocks: dict[str, Configurable]) -> None:
    inside = {id(module) for module in block.modules()}
    for path, part in blocks.items():
        if id(part) not in inside:
            raise ValueError(
                f"{type(block).__name__} cannot be saved: the {type(part).__name__} it was given as {path!r} is not in it any more."
                f" Keep a part under the argument's name (self.{path.partition('/')[0]}), so that replacing it is seen"
            )


def _check_values(block: Configurable, own: dict[str, Tensor]) -> None:
    for key, tensor in own.items():
        if ".base_layer." in key:
            raise ValueError(
                f"{type(block).__name__} cannot be saved: {key} has an adapter; save_lora saves it, merge_lora ends it"
            )
        if tensor.is_meta:
            raise ValueError(f"{type(block).__name__} cannot be saved: {key} is on the meta device and has no values")
        if isinstance(tensor, _Sharded):
            raise ValueError(f"{type(block).__name__} cannot be saved: {key} is sharded over processes; gather it first")


def write_folder(
    content: Folder, folder: Path, max_shard_size: int | str, finished: Callable[[str, int, int], None] | None = None
) -> None:
    """Writes one folder of a plan; see ``shards.write``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content.config, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / config.FILE).write_text(text + "\n", encoding="utf-8")
    if content.tensors:
        shards.write(folder, content.tensors, lambda key: content.read(content.tensors[key]), max_shard_size, finished)


def _version() -> str:
    try:
        return version("mmblocks")
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
