"""What ``to_upstream`` writes is read again without a word from the user: the same config, the same tensors."""

from pathlib import Path
from typing import Any

import torch

from mmblocks import Block


def check_written_back(block: Block, layout: str, folder: Path, **options: Any) -> Block:
    """Writes, reads, writes and reads again.

    Args:
        block: what is written.
        layout: the published layout.
        folder: an empty folder.
        options: of ``from_pretrained``, where a part is always handed in.

    Returns:
        What was read.
    """
    block.to_upstream(folder / "first", layout=layout)
    first = type(block).from_pretrained(folder / "first", layout=layout, **options)
    first.to_upstream(folder / "second")
    second = type(block).from_pretrained(folder / "second", layout=layout, **options)
    assert (folder / "first" / "config.json").read_text() == (folder / "second" / "config.json").read_text()
    names = first.config.keys() - options.keys()
    assert {name: first.config[name] for name in names} == {name: second.config[name] for name in names}
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in block.state_dict().items())
    return first
