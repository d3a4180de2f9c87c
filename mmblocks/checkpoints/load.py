"""Loading a Block: built without values, compared with the files, then filled tensor by tensor."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mmblocks.block import Block, parts
from mmblocks.checkpoints import config, filling, tensors
from mmblocks.checkpoints.own import build_own
from mmblocks.checkpoints.published import build_published

B = TypeVar("B", bound=Block)


def locate(folder: Path, subfolder: str | None) -> Path:
    """The folder or file to load from.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a subfolder that is not inside the folder.
    """
    path = folder
    if subfolder is not None:
        path = folder / config.checked_subfolder(subfolder, "subfolder")
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    return path


def load(
    cls: type[B], path: Path, layout: str | None, overrides: dict[str, Any], dtype: torch.dtype | None, device: torch.device
) -> B:
    """See ``Block.from_pretrained``."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; accepted: floating-point dtypes")
    content = config.read(path) if path.is_dir() else None
    if content is not None and config.is_ours(content):
        if layout is not None:
            raise ValueError(f"layout is {layout!r}, but {path} was written by save_pretrained and has no other layout")
        block, jobs = build_own(cls, path, overrides)
    else:
        block, jobs = build_published(cls, path, content or {}, layout, overrides)
    given = tensors.ids(overrides)
    filling.compare_all(jobs, given)
    filling.fill(jobs, given, dtype, device)
    handed_in = {module for part in parts(overrides) for module in part.modules()}
    for module in block.modules():
        if module not in handed_in:
            _create_buffers(module, device)
    left = tensors.left_on_meta(block)
    if left:
        raise ValueError(
            f"{type(block).__name__}: {', '.join(left)} are in no checkpoint and have no values after loading;"
            " the module that holds them has to define reset_buffers(self, device), which creates them"
        )
    return block.eval()


def _create_buffers(module: nn.Module, device: torch.device) -> None:
    """Gives values to the buffers that no file holds, or moves them where the constructor has given them values."""
    reset = getattr(module, "reset_buffers", None)
    if reset is not None:
        reset(device)
    for name in module._non_persistent_buffers_set:
        buffer = module._buffers[name]
        if buffer is not None and not buffer.is_meta:
            module._buffers[name] = buffer.to(device)
