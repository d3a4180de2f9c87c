"""Loading a Block: built without values, compared with the files, then filled tensor by tensor."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmblocks.checkpoints import config, current, filling, tensors
from mmblocks.checkpoints.filling import Job
from mmblocks.checkpoints.finite import warn_of_not_finite
from mmblocks.checkpoints.hub.locating import Place
from mmblocks.checkpoints.layouts import preprocessing
from mmblocks.checkpoints.layouts.published import build_published
from mmblocks.checkpoints.origin import Origin
from mmblocks.checkpoints.own import build_own
from mmblocks.checkpoints.placement import Placement, Where
from mmblocks.configurable import Configurable, parts

LARGEST_BUFFERS = 2**33
"""Bytes of all that a constructor computes and no file holds; published models have some megabytes."""

_log = logging.getLogger(__name__)


def load(
    place: Place,
    overrides: dict[str, Any],
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: Mapping[str, Where] | str | None = None,
) -> Configurable:
    """See ``Block.from_pretrained``; ``device`` is for all where there is no ``device_map``."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; accepted: floating-point dtypes")
    block, jobs = current.consistently(place.root, lambda: open_place(place, overrides))
    given = tensors.ids(overrides)
    filling.compare_all(jobs, given)
    placement = None if device_map is None else Placement(block, device_map, dtype, given)
    left = filling.fill(jobs, given, dtype, (lambda _: device) if placement is None else placement.destination)
    handed_in = {module for part in parts(overrides) for module in part.modules()}
    _check_buffers(block, handed_in)
    for name, module in block.named_modules():
        if module not in handed_in:
            _create_buffers(module, device if placement is None else placement.computing(name))
    _check_values(block, placement)
    warn_of_not_finite(block, given, was_read=dtype is not None or all(job.reads_all for job in jobs))
    if placement is not None:
        placement.dispatch(block, left)
    return block.eval()


def _check_buffers(block: Configurable, handed_in: set[nn.Module]) -> None:
    """Of weights there is as much as the files hold; of these as much as arguments from a file ask for."""
    modules = [module for module in block.modules() if module not in handed_in]
    buffers = [module._buffers.get(name) for module in modules for name in module._non_persistent_buffers_set]
    sizes = [buffer.nbytes for buffer in buffers if buffer is not None]
    if sum(sizes) > LARGEST_BUFFERS:
        raise ValueError(
            f"{type(block).__name__} asks for {sum(sizes)} bytes of buffers that are in no checkpoint; accepted: {LARGEST_BUFFERS}"
        )


def _check_values(block: Configurable, placement: Placement | None) -> None:
    empty = [name for name in tensors.left_on_meta(block) if placement is None or not placement.is_absent(name)]
    if empty:
        raise ValueError(
            f"{type(block).__name__}: {', '.join(empty)} are in no checkpoint and have no values after loading;"
            " the module that holds them has to define reset_buffers(self, device), which creates them"
        )


def open_place(place: Place, overrides: dict[str, Any]) -> tuple[Configurable, list[Job]]:
    """The Block without values; all files that fill it are open."""
    cls, path, layout = place.cls, place.path, place.layout
    content = config.read(path) if path.is_dir() else None
    if content is not None and config.is_ours(content):
        if layout is not None:
            raise ValueError(f"layout is {layout!r}, but {path} was written by save_pretrained and has no other layout")
        if place.ignored:
            raise ValueError(f"ignored_entries is {place.ignored!r}, but {path} was written by save_pretrained; accepted: none")
        return build_own(cls, path, overrides)
    published = config.without(content or {}, preprocessing.of_config(place.ignored))
    images = preprocessing.read(path, place.ignored) if path.is_dir() else None
    block, found, jobs = build_published(cls, path, published, layout, overrides, images)
    block.origin = Origin(place.source, found.name, place.revision)
    _log.info("%s comes from %s", cls.__name__, block.origin)
    return block, jobs


def _create_buffers(module: nn.Module, device: torch.device) -> None:
    """Gives values to the buffers that no file holds, or moves them where the constructor has given them values."""
    reset = getattr(module, "reset_buffers", None)
    if reset is not None:
        reset(device)
    for name in module._non_persistent_buffers_set:
        buffer = module._buffers[name]
        if buffer is not None and not buffer.is_meta:
            module._buffers[name] = buffer.to(device)
