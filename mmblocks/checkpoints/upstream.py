"""Writing a Block in the layout of a published checkpoint, so that the authors' own code reads it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints import tensors
from mmblocks.checkpoints.files import folders, shards
from mmblocks.checkpoints.layouts import preprocessing
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.rules import Source
from mmblocks.configurable import Configurable


def save(block: Configurable, folder: Path, name: str | None, max_shard_size: int | str) -> None:
    """See ``Block.to_upstream``."""
    layout = choose(block, name)
    with folders.replacing(folder) as temporary:
        write_folder(block, layout, temporary, lambda tensor: tensor.detach(), max_shard_size)


def choose(block: Configurable, name: str | None) -> Layout:
    """The layout of that name, the one the Block came in, or its only one.

    Raises:
        ValueError: there is none, or several to choose from.
    """
    layouts = {layout.name: layout for layout in block.layouts}
    if name is None and block.origin is not None:
        name = block.origin.layout
    if name is None and len(layouts) == 1:
        name = next(iter(layouts))
    if name not in layouts:
        raise ValueError(f"layout is {name!r}; {type(block).__name__} has: {', '.join(layouts) or 'none'}")
    return layouts[name]


def write_folder(
    block: Configurable,
    layout: Layout,
    folder: Path,
    read: Callable[[Tensor], Tensor],
    max_shard_size: int | str,
    finished: Callable[[str, int, int], None] | None = None,
) -> None:
    """Writes the tensors, and the configs of the model and of its image processor where the layout knows them.

    ``read`` gives the values of each of the Block's tensors.

    Raises:
        ValueError: the layout has no place for one of the tensors.
    """
    slots = tensors.slots(block)
    sources = layout.sources(slots, block.config, to="theirs")
    written = {id(slots[key].tensor) for source in sources.values() for key in source.keys}
    lost = [key for key, slot in slots.items() if id(slot.tensor) not in written]
    if lost:
        raise ValueError(f"layout {layout.name!r} has no place for {', '.join(lost[:5])} of {type(block).__name__}")
    written_config = published_config(block, layout)
    contents: dict[str, Mapping[str, Any] | None] = {} if written_config is None else {**layout.parted(written_config)}
    contents[preprocessing.FILE] = _images(block, layout)
    tables = {key: table for derived in layout.derived if derived.made for key, table in derived.made(block.config).items()}
    empty = {key: slot.tensor.detach().to("meta") for key, slot in slots.items()}
    meta = {key: source.read(empty) for key, source in sources.items()} | {key: t.to("meta") for key, t in tables.items()}

    def value(key: str) -> Tensor:
        if key in tables:
            return tables[key]
        source: Source = sources[key]
        return source.read({name: read(slots[name].tensor) for name in source.keys})

    with torch.no_grad():
        shards.write(folder, meta, value, max_shard_size, finished, layout.weights)
    for name, content in contents.items():
        if content is not None:
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def published_config(block: Configurable, layout: Layout) -> Mapping[str, Any] | None:
    """The config that the authors' files have; None where the layout does not know the way back."""
    return None if layout.published_config is None else layout.published_config(block.config)


def _images(block: Configurable, layout: Layout) -> Mapping[str, Any] | None:
    published = None if layout.preprocessor is None else layout.preprocessor.published
    return None if published is None else published(block.config)
