"""The way of ``from_pretrained``: a Block is built without values, compared with the files, then filled tensor by tensor.

``load`` is that way from top to bottom. On it ``hub.locating`` finds what was named, ``layouts.published`` understands what others
wrote, ``building`` calls constructors, and ``filling`` compares and reads.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mmblocks.checkpoints import config, filling, origin, tensors
from mmblocks.checkpoints.building import build
from mmblocks.checkpoints.files import checksums, folders
from mmblocks.checkpoints.files import stored as files
from mmblocks.checkpoints.filling import Job
from mmblocks.checkpoints.finite import warn_of_not_finite
from mmblocks.checkpoints.functions import find_function
from mmblocks.checkpoints.hub import locating
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published import build_published
from mmblocks.checkpoints.layouts.rules import Source, unchanged
from mmblocks.checkpoints.origin import Place
from mmblocks.checkpoints.placement import OneDevice, Placement, Where
from mmblocks.configurable import Configurable, find, parts, replaced_names
from mmblocks.support.buffers import ResetsBuffers

B = TypeVar("B", bound=Configurable)

LARGEST_BUFFERS = 2**33
"""Bytes of all that a constructor computes and no file holds; published models have some megabytes."""


def load(
    cls: type[B],
    name: str | Path,
    overrides: dict[str, Any],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    device: Where | None = None,
    device_map: Mapping[str, Where] | str | None = None,
    layout: str | None = None,
    ignored: Collection[str] = (),
) -> B:
    """See ``Block.from_pretrained``."""
    if device is not None and device_map is not None:
        raise ValueError(f"device is {device!r} and device_map {device_map!r}; accepted: one of them")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; accepted: floating-point dtypes")
    one = OneDevice(torch.get_default_device() if device is None else torch.device(device))
    place = locating.locate(
        cls, name, subfolder=subfolder, revision=revision, layout=layout, ignored=tuple(ignored), given=overrides
    )
    block, jobs = folders.consistently(place.root, lambda: open_place(place, overrides))
    given = tensors.ids(overrides)
    filling.compare_all(jobs, given)
    placement = one if device_map is None else Placement(block, device_map, dtype, given)
    left = filling.fill(jobs, given, dtype, placement.destination)
    _create_buffers(block, overrides, placement)
    warn_of_not_finite(block, given, was_read=dtype is not None or all(job.reads_all for job in jobs))
    placement.dispatch(block, left)
    return block.eval()


def open_place(place: Place[B], overrides: dict[str, Any]) -> tuple[B, list[Job]]:
    """The Block without values; all files that fill it are open."""
    path = place.path
    content = config.read(path) if path.is_dir() else None
    if content is None or not config.is_ours(content):
        return build_published(place, content or {}, overrides)
    if place.layout is not None:
        raise ValueError(f"layout is {place.layout!r}, but {path} was written by save_pretrained and has no other layout")
    if place.ignored:
        raise ValueError(f"ignored_entries is {place.ignored!r}, but {path} was written by save_pretrained; accepted: none")
    built: dict[Path, Configurable] = {}
    block = _build(path, "", place.cls, overrides, built)
    return block, [_job(folder, part, overrides if part is block else {}) for folder, part in built.items()]


def build_own(folder: Path, cls: type[B], overrides: dict[str, Any]) -> B:
    """The Block of a folder that ``save_pretrained`` wrote, without values; of its files the configs alone are read."""
    return _build(folder, "", cls, overrides, {})


def _build(folder: Path, subfolder: str, expected: type[B], overrides: dict[str, Any], built: dict[Path, Configurable]) -> B:
    """Builds the Block of one folder of ours after those in its subfolders; ``built`` collects them all."""
    title = f"{subfolder}/{config.FILE}".removeprefix("/")
    content = config.read(folder)
    if content is None or not config.is_ours(content):
        raise ValueError(f"{folder} holds no Block: it has no {config.FILE} that save_pretrained wrote")
    cls = find(content[config.CLASS])
    if not issubclass(cls, expected):
        raise TypeError(f"{folder} holds a {cls.__name__}, which is not a {expected.__name__}")
    written = config.arguments(content)
    config.check_arguments(cls, written, title)
    config.check_arguments(cls, overrides, "from_pretrained")
    written = {name: value for name, value in written.items() if name not in replaced_names(cls, overrides)}
    config.check_complete(cls, {**written, **overrides}, title)

    def part(name: str) -> Configurable:
        path = config.part_folder(folder, name)
        return built[path] if path in built else _build(path, f"{subfolder}/{name}".removeprefix("/"), Configurable, {}, built)

    arguments = dict(overrides)
    for name in [name for name in written if name not in overrides]:
        value = written[name]
        is_code = isinstance(value, dict) and config.CODE in value
        arguments[name] = _function(cls, name, value[config.CODE], folder, subfolder) if is_code else config.decode(value, part)
    block = build(cls, arguments, title, overrides)
    _share(block, config.shared(content), tensors.ids(overrides), folder)
    block.origin = origin.read(content)
    built[folder] = block
    return block


def _function(cls: type[Configurable], name: str, code: object, folder: Path, subfolder: str) -> Any:
    """The function of that name where it may be found; it is not stored, so that any other has to be handed in."""
    found = find_function(code)
    if found is not None:
        return found
    call = f"from_pretrained({str(folder)!r}, {name}=...)"
    if subfolder:
        call = f"part = Block.{call}, and hand the part in: from_pretrained(..., {subfolder.partition('/')[0]}=...)"
    what = f"argument {name!r} of {cls.__name__} is code ({code}), which is not stored"
    raise ValueError(f"{what} and is no function at the top of a module of yours that is imported; hand it in: {call}")


def _share(block: Configurable, names: dict[str, str], given: set[int], folder: Path) -> None:
    """Makes the names that shared a tensor share it again, before either has values. What was handed in keeps its own."""
    slots = tensors.slots(block)
    for name, stored in names.items():
        # A name that is not there is reported with the other differences, or belongs to a part that was handed in.
        if name not in slots or stored not in slots or id(slots[name].tensor) in given:
            continue
        tensor, other = slots[name].tensor, slots[stored].tensor
        if tensor.shape != other.shape or isinstance(tensor, nn.Parameter) != isinstance(other, nn.Parameter):
            raise ValueError(f"{folder / config.FILE}: {name} cannot be {stored}, which has another shape or kind")
        slots[name].put(other)


def _job(folder: Path, block: Configurable, given: Collection[str]) -> Job:
    """Fills what is a Block's own from its folder, and compares that with its checksums, which reads all of it.

    All of the folder but the tensors' values is read now.
    """
    content, stored = config.read(folder) or {}, files.open_own(folder)
    inside = {place: name for place, name in config.places(content).items() if place.partition("/")[0] not in given}
    contents = {place: config.read(config.part_folder(folder, name)) or {} for place, name in inside.items()}
    return Job(
        title=f"{type(block).__name__} from {folder}",
        slots=tensors.own_slots(block),
        sources=_sources(block, stored),
        stored=stored,
        unknown=[],
        check=partial(checksums.check, content, stored, contents, set(given), str(folder)),
        reads_all=content.get(checksums.NAME) is not None,
    )


def _sources(block: Configurable, stored: Collection[str]) -> dict[str, Source]:
    """Where each tensor of a folder of ours goes: to its own name, or to that which a former name has now."""
    sources = {key: unchanged(key) for key in stored}
    former: Layout | None = type(block).former
    if former is not None:
        renamed = former.sources([key for key in stored if former.to_ours(key)], block.config)
        sources = {key: source for key, source in sources.items() if not former.to_ours(key)} | renamed
    return sources


def _create_buffers(block: Configurable, overrides: dict[str, Any], placement: OneDevice | Placement) -> None:
    """Gives values to the buffers that no file holds, or moves them where the constructor has given them values.

    Of weights there is as much as the files hold; of these as much as arguments from a file ask for.
    """
    handed_in = {module for part in parts(overrides) for module in part.modules()}
    modules = {name: module for name, module in block.named_modules() if module not in handed_in}
    buffers = [module._buffers.get(name) for module in modules.values() for name in module._non_persistent_buffers_set]
    size = sum(buffer.nbytes for buffer in buffers if buffer is not None)
    if size > LARGEST_BUFFERS:
        raise ValueError(
            f"{type(block).__name__} asks for {size} bytes of buffers that are in no checkpoint; accepted: {LARGEST_BUFFERS}"
        )
    for path, module in modules.items():
        device = placement.computing(path)
        if isinstance(module, ResetsBuffers):
            module.reset_buffers(device)
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    empty = [name for name in tensors.left_on_meta(block) if not placement.is_absent(name)]
    if empty:
        raise ValueError(
            f"{type(block).__name__}: {', '.join(empty)} are in no checkpoint and have no values after loading;"
            " the module that holds them has to define reset_buffers(self, device), which creates them"
        )
