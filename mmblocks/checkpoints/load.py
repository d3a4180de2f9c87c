"""Loading a Block: built without values, compared with the files, then filled tensor by tensor."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmblocks.block import Block, parts
from mmblocks.checkpoints import classes, config, files, tensors
from mmblocks.checkpoints.difference import Difference, compare
from mmblocks.checkpoints.layouts import Layout, converted_shapes
from mmblocks.checkpoints.rules import Source, unchanged
from mmblocks.checkpoints.tensors import Slot

B = TypeVar("B", bound=Block)


class Job(NamedTuple):
    """Places to fill from one folder. ``unknown`` are tensors of the folder that have no place in any layout."""

    title: str
    slots: dict[str, Slot]
    sources: dict[str, Source]
    stored: files.Stored
    unknown: list[str]


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
        block, jobs = _build_own(cls, path, overrides)
    else:
        block, jobs = _build_published(cls, path, content or {}, layout, overrides)
    _compare(jobs)
    given = {id(module) for part in parts(overrides) for module in part.modules()}
    _fill(jobs, dtype, device)
    _reset_buffers([module for module in block.modules() if id(module) not in given], device)
    left = tensors.left_on_meta(block)
    if left:
        raise ValueError(
            f"{type(block).__name__}: {', '.join(left)} are in no checkpoint and have no values after loading;"
            " the module that holds them has to define reset_buffers(self, device), which creates them"
        )
    return block.eval()


def _build_own(cls: type[B], folder: Path, overrides: dict[str, Any]) -> tuple[B, list[Job]]:
    """A Block without values, and a job for its folder and that of each Block inside."""
    built: dict[Path, Block] = {}
    block = _build(folder, "", cls, overrides, built)
    jobs = []
    for path, part in built.items():
        stored = files.open_own(path)
        title = f"{type(part).__name__} from {path}"
        jobs.append(Job(title, tensors.own_slots(part), {key: unchanged(key) for key in stored}, stored, []))
    return block, jobs


def _build(folder: Path, subfolder: str, expected: type[B], overrides: dict[str, Any], built: dict[Path, Block]) -> B:
    """Builds the Block of one folder after those in its subfolders; ``built`` collects them all."""
    origin = f"{subfolder}/{config.FILE}".removeprefix("/")
    content = config.read(folder)
    if content is None or not config.is_ours(content):
        raise ValueError(f"{folder} holds no Block: it has no {config.FILE} that save_pretrained wrote")
    cls = classes.find(content[config.CLASS])
    if not issubclass(cls, expected):
        raise TypeError(f"{folder} holds a {cls.__name__}, which is not a {expected.__name__}")
    written = config.arguments(content)
    config.check_arguments(cls, written, origin)
    config.check_arguments(cls, overrides, "from_pretrained")
    config.check_complete(cls, {**written, **overrides}, origin)

    def part(name: str) -> Block:
        path = config.part_folder(folder, name)
        return built[path] if path in built else _build(path, f"{subfolder}/{name}".removeprefix("/"), Block, {}, built)

    arguments = dict(overrides)
    for name in [name for name in written if name not in overrides]:
        _check_code(cls, name, written[name], folder, subfolder)
        arguments[name] = config.decode(written[name], part)
    with torch.device("meta"):
        block = cls(**arguments)
    _share(block, content.get(config.SHARED, {}), folder)
    built[folder] = block
    return block


def _check_code(cls: type[Block], name: str, value: Any, folder: Path, subfolder: str) -> None:
    """A function is not stored, so that it has to be handed in."""
    if not isinstance(value, dict) or config.CODE not in value:
        return
    call = f"from_pretrained({str(folder)!r}, {name}=...)"
    if subfolder:
        call = f"part = Block.{call}, and hand the part in: from_pretrained(..., {subfolder.partition('/')[0]}=...)"
    raise ValueError(
        f"argument {name!r} of {cls.__name__} is code ({value[config.CODE]}), which is not stored; hand it in: {call}"
    )


def _share(block: Block, names: Any, folder: Path) -> None:
    """Makes the names that shared a tensor share it again, before either has values."""
    slots = tensors.slots(block)
    for name, stored in names.items():
        # A name that is not there is reported with the other differences, or belongs to a part that was handed in.
        if name not in slots or stored not in slots or not slots[name].tensor.is_meta:
            continue
        if slots[name].tensor.shape != slots[stored].tensor.shape:
            raise ValueError(f"{folder / config.FILE}: {name} cannot be {stored}, which has another shape")
        slots[name].put(slots[stored].tensor)


def _build_published(
    cls: type[B], path: Path, published: dict[str, Any], name: str | None, overrides: dict[str, Any]
) -> tuple[B, list[Job]]:
    config.check_arguments(cls, overrides, "from_pretrained")
    layout, stored = _choose_layout(cls, path, published, name)
    with torch.device("meta"):
        arguments = {**layout.arguments(published), **overrides}
        config.check_arguments(cls, arguments, f"layout {layout.name!r}")
        config.check_complete(cls, arguments, f"layout {layout.name!r}")
        block = cls(**arguments)
    title = f"{cls.__name__} from {path} in the layout {layout.name!r}"
    sources = layout.sources(stored, block.config)
    return block, [Job(title, tensors.slots(block), sources, stored, layout.unknown(stored))]


def _choose_layout(
    cls: type[Block], path: Path, published: dict[str, Any], name: str | None
) -> tuple[Layout, files.Stored]:
    """The layout of that name, or the only one that fits.

    Raises:
        ValueError: the class reads no published checkpoints, or none or several of its layouts fit.
    """
    names = ", ".join(layout.name for layout in cls.layouts)
    if not cls.layouts:
        raise ValueError(
            f"{path} was not written by save_pretrained, and {cls.__name__} has no layouts for published checkpoints;"
            " call from_pretrained of the class that reads it"
        )
    if name is not None:
        for layout in cls.layouts:
            if layout.name == name:
                return layout, files.open_published(path, layout.unwrap)
        raise ValueError(f"layout is {name!r}; {cls.__name__} has: {names}")

    fitting, reasons = [], []
    for layout in cls.layouts:
        try:
            stored = files.open_published(path, layout.unwrap)
        except ValueError as error:
            reasons.append(f"layout {layout.name!r}: {error}")
            continue
        if layout.fits(stored, published):
            fitting.append((layout, stored))
        else:
            reasons.append(f"layout {layout.name!r}: {_why_not(layout, stored, published)}")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        both = ", ".join(layout.name for layout, _ in fitting)
        raise ValueError(f"{path} fits several layouts of {cls.__name__}: {both}; choose one: from_pretrained(..., layout=...)")
    raise ValueError("\n".join([f"{path} fits no layout of {cls.__name__} ({names})", *reasons]))


def _why_not(layout: Layout, stored: files.Stored, published: Mapping[str, Any]) -> str:
    unknown = {key: tuple(stored.meta[key].shape) for key in layout.unknown(stored)}
    if unknown:
        return str(Difference({}, unknown, {}))
    try:
        layout.arguments(published)
    except (KeyError, ValueError) as error:
        return f"its config does not fit: {type(error).__name__}: {error}"
    return "none of its tensors is there"


def _compare(jobs: list[Job]) -> None:
    """Raises ``ValueError`` with every difference between places and files; reads only headers."""
    present = {id(job.slots[key].tensor) for job in jobs for key in job.sources if key in job.slots}
    problems = []
    for job in jobs:
        # A tensor that has two names needs only one of them, and one that was handed in needs none.
        expected = {
            key: tuple(slot.tensor.shape)
            for key, slot in job.slots.items()
            if key in job.sources or (slot.tensor.is_meta and id(slot.tensor) not in present)
        }
        unknown = {key: tuple(job.stored.meta[key].shape) for key in job.unknown}
        difference = compare(expected, converted_shapes(job.sources, job.stored.meta))
        difference = replace(difference, unexpected={**difference.unexpected, **unknown})
        if difference:
            problems.append(f"{job.title} does not match:\n{difference}")
    if problems:
        raise ValueError("\n".join(problems))
    for job in jobs:
        _compare_kinds(job)


def _compare_kinds(job: Job) -> None:
    """Casting is for floating-point tensors among themselves: 1.5 is no index."""
    for key, source in job.sources.items():
        found, expected = source.read(job.stored.meta).dtype, job.slots[key].tensor.dtype
        if found.is_floating_point != expected.is_floating_point or found.is_complex != expected.is_complex:
            raise ValueError(f"{job.title}: {key} holds {found}, but {expected} is expected")


def _fill(jobs: list[Job], dtype: torch.dtype | None, device: torch.device) -> None:
    """Puts values into all places. A tensor that two places share is read once, and stays shared."""
    # Keyed by the tensor without values, which stays alive, and its id unique, until all places are filled.
    filled: dict[int, Tensor] = {}
    places = [(job, key, slot, slot.tensor) for job in jobs for key, slot in job.slots.items() if slot.tensor.is_meta]
    for job, key, _, placeholder in places:
        if key not in job.sources:
            continue
        tensor = _placed(job.sources[key].read(job.stored), dtype, device)
        if id(placeholder) not in filled:
            is_parameter = isinstance(placeholder, nn.Parameter)
            filled[id(placeholder)] = nn.Parameter(tensor, placeholder.requires_grad) if is_parameter else tensor
        elif not torch.equal(filled[id(placeholder)], tensor):
            raise ValueError(f"{job.title}: {key} shares its tensor with another name, but the files hold two different ones")
    for _, _, slot, placeholder in places:
        slot.put(filled[id(placeholder)])


def _placed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """On its device, in its dtype, and without the rest of a larger tensor it may be a piece of."""
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.to(device).contiguous()


def _reset_buffers(modules: list[nn.Module], device: torch.device) -> None:
    for module in modules:
        reset = getattr(module, "reset_buffers", None)
        if reset is not None:
            reset(device)
