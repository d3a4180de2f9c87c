"""The model that ``mmblocks plan`` speaks of, without values, and what the command shows."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints import config
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.layouts import published
from mmblocks.checkpoints.load import build_own
from mmblocks.cli import fitting, loading, reporting
from mmblocks.compose import MultimodalModel
from mmblocks.pipelines import known
from mmblocks.pipelines.loading import FILE as PIPELINE
from mmblocks.pipelines.loading import MODULES
from mmblocks.pipelines.placing import as_bytes, shown
from mmblocks.pipelines.planning import MemoryPlan
from mmblocks.trunks.transformers.hooks import PreTrained


class Named(NamedTuple):
    """What the options of the command name.

    Attributes:
        source: a folder, a repository of the Hub, or a name of the catalogue.
        block: the class.
        layout: of the files.
        revision: on the Hub.
        subfolder: of the part.
        arguments: of the constructor, that no file holds.
    """

    source: str
    block: str | None = None
    layout: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})


class Described(NamedTuple):
    """A model without values.

    Attributes:
        model: it.
        dtype: that of most of its weights in the files; None where that is the model's own.
        beside: other components of a pipeline.
    """

    model: nn.Module
    dtype: torch.dtype | None
    beside: dict[str, nn.Module]


def sizes_of(text: str | None) -> list[str]:
    """The devices of ``24GB,24GB``.

    Raises:
        ValueError: one is no size.
    """
    if text is None:
        return []
    sizes = [size.strip() for size in text.split(",")]
    for size in sizes:
        try:
            as_bytes(size)
        except ValueError as error:
            raise ValueError(f"--devices is {text!r}: {error}") from error
    return sizes


def described(named: Named) -> Described:
    """The model, built from configs and headers alone.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError, OSError: as ``Block.from_pretrained``.
    """
    folder = fitting.local_path(named.source, named.revision, named.subfolder)
    if folder is not None and (folder / PIPELINE).is_file():
        return _pipeline(folder, named)
    is_part = named.block is not None or named.subfolder is not None
    is_own = folder is not None and folder.is_dir() and config.is_ours(config.read(folder) or {})
    entry = None if is_part or is_own else _known(named.source)
    if entry is None:
        return Described(*_built(named), {})
    model = named._replace(block=entry.model.block, layout=named.layout or entry.model.layout)
    beside = {}
    for name, source in entry.components.items():
        place = named.source if source.id is None else source.id
        revision = named.revision if source.id is None else None
        beside[name] = _built(Named(place, source.block, source.layout, revision, source.subfolder))[0]
    return Described(*_built(model), beside)


def _known(source: str) -> known.Known | None:
    """The whole published model of that name; None where it is none, or a part."""
    if catalogue.find(source) is not None:
        return None
    try:
        return known.find(source, None)[1]
    except ValueError:
        return None


def _pipeline(folder: Path, named: Named) -> Described:
    content = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
    names = [name for name in content.get("components", ()) if name in MODULES]
    if "model" not in names:
        raise ValueError(f"{folder / PIPELINE} names no model; accepted: a folder that Pipeline.save_pretrained wrote")
    found = {name: _built(Named(str(folder / name))) for name in names}
    model, dtype = found.pop("model")
    return Described(model, dtype, {name: part for name, (part, _) in found.items()})


def _built(named: Named) -> tuple[nn.Module, torch.dtype | None]:
    """One Block, or a language model of transformers, and the dtype of its files."""
    contents = fitting.contents(named.source, named.revision, named.subfolder)
    entry = None if Path(named.source).exists() else catalogue.find(named.source)
    if config.is_ours(contents.config):
        folder = fitting.local_path(named.source, named.revision, named.subfolder) or _configs(named)
        return build_own(folder, Block, dict(named.arguments)), _dtype(contents)
    if named.block is None and entry is None and is_language_model(contents.config):
        return language_model(contents.config), _dtype(contents)
    cls: type[Any] = _class(named, contents) if entry is None or named.block is not None else entry.block_class()
    layout = named.layout or (None if entry is None else entry.layout)
    return _instance(cls, layout, named, contents), _dtype(contents)


def _configs(named: Named) -> Path:
    """A folder on this machine with the configs, and none of the weights, of a repository that a Block was saved to."""
    repository, inside = fitting.on_the_hub(named.source, named.revision, named.subfolder)
    prefix = f"{inside}/" if inside else ""
    for name in repository.files:
        if name.startswith(prefix) and name.rpartition("/")[2] == config.FILE:
            repository.get(name)
    return repository.get(prefix + config.FILE).parent


def _class(named: Named, contents: fitting.Contents) -> type[Block]:
    """The class that is named, or the only one that fits."""
    if named.block is not None:
        return fitting.choose(Path(named.source), named.block)
    classes = {fit.block for fit in fitting.fits(contents)}
    if len(classes) != 1:
        contents.headers(None)  # a file that cannot be read says so
        names = ", ".join(sorted(cls.__name__ for cls in classes)) or "no Block"
        raise ValueError(f"{names} of mmblocks fit {named.source}; name the one that is meant with --block")
    return classes.pop()


def _instance(cls: type[Any], layout: str | None, named: Named, contents: fitting.Contents) -> Block:
    """The Block that a published config describes; of several layouts the one that the names of the tensors are in."""
    layouts = published.layouts(cls, named.source, layout)
    reasons = []
    for one in layouts:
        content, headers = contents.config_of(one), contents.headers(one.unwrap)
        made = partial(published.instance, cls, one, content, dict(named.arguments))
        if len(layouts) == 1 or published.fits(one, headers, content, made):
            block = made()
            if not one.check({key: tuple(tensor.shape) for key, tensor in headers.items()}, block):
                return block
        reasons.append(published.Reason.of(one, {key: tuple(tensor.shape) for key, tensor in headers.items()}, content))
    raise ValueError(published.fits_none(named.source, cls, reasons))


def is_language_model(content: Mapping[str, Any]) -> bool:
    """Whether a config is one of a causal language model that transformers knows."""
    kind = content.get("model_type")
    if not isinstance(kind, str):
        return False
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return False
    known_as = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    return known_as is not None and known_as in (content.get("architectures") or ())


def language_model(content: Mapping[str, Any]) -> MultimodalModel:
    """The model that ``MultimodalModel.around`` makes of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in content.items() if name not in ("model_type", "auto_map", "dtype", "torch_dtype")}
    auto: PreTrained = AutoModelForCausalLM  # its methods have no types
    with torch.device("meta"):
        made = auto.from_config(AutoConfig.for_model(content["model_type"], **settings), trust_remote_code=False)
    return MultimodalModel.around(made)


def _dtype(contents: fitting.Contents) -> torch.dtype | None:
    """That of most weights; where there are none yet, what the config says."""
    try:
        headers = contents.headers(None)
    except (ValueError, FileNotFoundError):
        said = contents.config.get("dtype", contents.config.get("torch_dtype"))
        return loading.dtype_of(said) if isinstance(said, str) else None
    counted: Counter[torch.dtype] = Counter()
    for tensor in headers.values():
        if tensor.is_floating_point():
            counted[tensor.dtype] += tensor.numel()
    return counted.most_common(1)[0][0] if counted else None


def as_json(plan: MemoryPlan, dtype: torch.dtype | None) -> dict[str, Any]:
    """The plan as one JSON value."""
    devices = [{"size": load.size, "needed": load.needed, "modules": list(load.pieces)} for load in plan.devices]
    return {
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "parts": [vars(part) for part in plan.parts],
        "parameters": plan.parameters,
        "weights": plan.weights,
        "cache": plan.cache,
        "activations": plan.activations,
        "total": plan.total,
        "unknown": plan.unknown or None,
        "devices": devices,
        "device_map": dict(plan.device_map),
    }


def tables(plan: MemoryPlan, title: str) -> list[Table]:
    """The plan as people read it."""
    rows = [
        [part.name, f"{part.parameters:,}", *(_size(value) for value in (part.weights, part.cache, part.activations))]
        for part in plan.parts
    ]
    rows.append(["all", f"{plan.parameters:,}", shown(plan.weights), shown(plan.cache), shown(plan.activations)])
    found = [reporting.table(title, ["part", "parameters", "weights", "cache", "activations"], rows)]
    if plan.devices:
        listed = [
            [str(number), shown(load.size), shown(load.needed), load.summary or None] for number, load in enumerate(plan.devices)
        ]
        found.append(reporting.table("devices", ["device", "has", "needs", "holds"], listed))
    return found


def _size(value: int | None) -> str | None:
    return None if value is None or value == 0 else shown(value)
