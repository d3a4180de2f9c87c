"""Rebuilding a Block from a folder that ``save_pretrained`` wrote."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mmblocks.checkpoints import config, tensors
from mmblocks.checkpoints import origin as origins
from mmblocks.checkpoints.building import build
from mmblocks.checkpoints.files import checksums
from mmblocks.checkpoints.files import stored as files
from mmblocks.checkpoints.filling import Job
from mmblocks.checkpoints.layouts.rules import unchanged
from mmblocks.configurable import Configurable, find

B = TypeVar("B", bound=Configurable)


def build_own(cls: type[B], folder: Path, overrides: dict[str, Any]) -> tuple[B, list[Job]]:
    """A Block without values, and a job for its folder and that of each Block inside."""
    built: dict[Path, Configurable] = {}
    block = _build(folder, "", cls, overrides, built)
    jobs = []
    for path, part in built.items():
        given = overrides if part is block else {}
        stored = files.open_own(path)
        title = f"{type(part).__name__} from {path}"
        check, reads_all = _check(path, stored, given)
        sources = {key: unchanged(key) for key in stored}
        jobs.append(Job(title, tensors.own_slots(part), sources, stored, [], check, reads_all))
    return block, jobs


def _check(folder: Path, stored: files.Stored, given: dict[str, Any]) -> tuple[Callable[[bool], None], bool]:
    """What compares a folder with its checksums, when called, and whether there are any, so that it reads all tensors.

    All of the folder but the tensors' values is read now.
    """
    content = config.read(folder) or {}
    inside = {place: name for place, name in config.places(content).items() if place.partition("/")[0] not in given}
    parts = {place: config.read(config.part_folder(folder, name)) or {} for place, name in inside.items()}
    return partial(checksums.check, content, stored, parts, set(given), str(folder)), content.get(checksums.NAME) is not None


def _build(folder: Path, subfolder: str, expected: type[B], overrides: dict[str, Any], built: dict[Path, Configurable]) -> B:
    """Builds the Block of one folder after those in its subfolders; ``built`` collects them all."""
    origin = f"{subfolder}/{config.FILE}".removeprefix("/")
    content = config.read(folder)
    if content is None or not config.is_ours(content):
        raise ValueError(f"{folder} holds no Block: it has no {config.FILE} that save_pretrained wrote")
    cls = find(content[config.CLASS])
    if not issubclass(cls, expected):
        raise TypeError(f"{folder} holds a {cls.__name__}, which is not a {expected.__name__}")
    written = config.arguments(content)
    config.check_arguments(cls, written, origin)
    config.check_arguments(cls, overrides, "from_pretrained")
    config.check_complete(cls, {**written, **overrides}, origin)

    def part(name: str) -> Configurable:
        path = config.part_folder(folder, name)
        return built[path] if path in built else _build(path, f"{subfolder}/{name}".removeprefix("/"), Configurable, {}, built)

    arguments = dict(overrides)
    for name in [name for name in written if name not in overrides]:
        _check_code(cls, name, written[name], folder, subfolder)
        arguments[name] = config.decode(written[name], part)
    block = build(cls, arguments, origin, overrides)
    _share(block, config.shared(content), tensors.ids(overrides), folder)
    block.origin = origins.read(content)
    built[folder] = block
    return block


def _check_code(cls: type[Configurable], name: str, value: Any, folder: Path, subfolder: str) -> None:
    """A function is not stored, so that it has to be handed in."""
    if not isinstance(value, dict) or config.CODE not in value:
        return
    call = f"from_pretrained({str(folder)!r}, {name}=...)"
    if subfolder:
        call = f"part = Block.{call}, and hand the part in: from_pretrained(..., {subfolder.partition('/')[0]}=...)"
    raise ValueError(f"argument {name!r} of {cls.__name__} is code ({value[config.CODE]}), which is not stored; hand it in: {call}")


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
