"""Pipelines from the Hub and from folders, and to folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmblocks.block import Block
from mmblocks.checkpoints import config
from mmblocks.checkpoints import save as saving
from mmblocks.checkpoints.files import folders
from mmblocks.configurable import find as block_class
from mmblocks.pipelines import known, values
from mmblocks.pipelines.known import Known, Source
from mmblocks.pipelines.tokenizer_files import text_tokenizer
from mmblocks.prompts.request import Components, NoText
from mmblocks.vocabulary.text_tokenizers import ByteTokenizer, TextTokenizer, TokenizerFile

FILE = "pipeline.json"
MODULES = ("model", "image_tokenizer", "decoder")
"""Components that are Blocks."""


def load(
    id_or_path: str | Path, front: object, revision: str | None, where: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[object, dict[str, Any]]:
    """See ``Pipeline.from_pretrained``: the front, and the components by name."""
    strange = {*given} - {*MODULES, "text_tokenizer"}
    if strange:
        raise TypeError(f"components {sorted(strange)} are not known; accepted: {', '.join((*MODULES, 'text_tokenizer'))}")
    if (Path(id_or_path) / FILE).is_file():
        return _load_own(Path(id_or_path), front, where, given)
    _, entry = known.find(str(id_or_path), front if isinstance(front, str) else None)
    spoken = entry.front_object() if front is None or isinstance(front, str) else front
    parts = _of_whole(entry, id_or_path, revision, where, given)
    for component, source in entry.components.items():
        parts[component] = _part(component, source, id_or_path, revision, {"device": where["device"]}, given)
    if entry.reads_text:
        parts["text_tokenizer"] = _text(entry, id_or_path, revision, given)
    return spoken, parts


def save(front: object, components: Components, folder: Path, max_shard_size: int | str) -> None:
    """See ``Pipeline.save_pretrained``."""
    content: dict[str, Any] = {"front": _written_front(front)}
    tokenizer = components.text_tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        content["text_tokenizer"] = {"specials": list(tokenizer.specials)}
    elif isinstance(tokenizer, NoText):
        content["text_tokenizer"] = None
    elif not isinstance(tokenizer, TokenizerFile):
        raise TypeError(f"text_tokenizer is a {type(tokenizer).__name__}; accepted: a TokenizerFile or a ByteTokenizer")
    blocks = {name: part for name in MODULES if (part := getattr(components, name)) is not None}  # fields of Components
    for name, part in blocks.items():
        if not isinstance(part, Block):
            raise TypeError(f"{name} is a {type(part).__name__}; accepted: a Block, which save_pretrained writes")
    content["components"] = sorted(blocks)
    planned = {path: one for name, part in blocks.items() for path, one in saving.plan(part, name).items()}
    with folders.replacing(folder) as temporary:
        for path, one in planned.items():
            saving.write_folder(one, temporary / path, max_shard_size)
        if isinstance(tokenizer, TokenizerFile):
            (temporary / "tokenizer.json").write_text(tokenizer.content, encoding="utf-8")
        (temporary / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _load_own(folder: Path, front: object, where: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[object, dict[str, Any]]:
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if isinstance(front, str):
        front = known.find(str(folder), front)[1].front_object()
    spoken = _read_front(content["front"]) if front is None else front
    parts: dict[str, Any] = {}
    for name in content["components"]:
        if name not in MODULES:
            raise ValueError(f"{folder / FILE} names the component {name!r}; accepted: {', '.join(MODULES)}")
        own = where if name == "model" else {"device": where["device"]}
        parts[name] = given[name] if _is_part(given.get(name)) else Block.from_pretrained(given.get(name, folder / name), **own)
    said = content.get("text_tokenizer", {})
    if "text_tokenizer" in given:
        parts["text_tokenizer"] = given["text_tokenizer"]
    elif said is not None:
        parts["text_tokenizer"] = ByteTokenizer(said["specials"]) if said else TokenizerFile(folder)
    return spoken, {**given, **parts}


def _part(
    name: str, source: Source, own: str | Path, revision: str | None, where: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """A component: the one that was handed in, or from where it is."""
    if _is_part(given.get(name)):
        return given[name]
    cls: Any = block_class(source.block)
    if name in given:
        return Block.from_pretrained(given[name], **where) if _is_own(given[name]) else cls.from_pretrained(given[name], **where)
    if source.is_given:
        raise ValueError(f"{name} is not given, and is nowhere that is known; accepted: a {source.block}, or where one is")
    place = own if source.id is None else source.id
    more = {"revision": revision} if source.id is None else {}
    if source.diffusers:
        if where.get("device_map") is not None:
            raise ValueError(f"device_map is {where['device_map']!r}; accepted of this model, which is of several folders: None")
        inside = place if source.subfolder is None else _below(place, source.subfolder)
        return cls.from_diffusers(inside, **more, dtype=where.get("dtype"), device=where["device"])
    if source.file is not None:
        place = _below(place, source.file)
    return cls.from_pretrained(place, subfolder=source.subfolder, layout=source.layout, **more, **where)


def _of_whole(
    entry: Known, own: str | Path, revision: str | None, where: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The model, and what else is part of the whole that it comes in; the whole is read where not all of them are given."""
    if not entry.parts:
        return {"model": _part("model", entry.model, own, revision, where, given)}
    found = {name: given[name] for name in entry.parts if _is_part(given.get(name))}
    for name in {*entry.parts} - {*found}:
        if name in given:
            read = _part(name, entry.model, own, revision, where, given)
            found[name] = _inside(read, entry.parts[name]) if isinstance(read, block_class(entry.model.block)) else read
    missing = {name: place for name, place in entry.parts.items() if name not in found}
    if missing:
        whole = _part("whole", entry.model, own, revision, where, given)
        found |= {name: _inside(whole, place) for name, place in missing.items()}
    return found


def _inside(whole: object, place: str) -> torch.nn.Module:
    if not isinstance(whole, torch.nn.Module):
        raise TypeError(f"{type(whole).__name__} has no parts; accepted: a Block")
    return whole.get_submodule(place)


def _is_part(value: object) -> bool:
    return isinstance(value, torch.nn.Module)


def _is_own(place: object) -> bool:
    """Whether a folder holds a Block that ``save_pretrained`` wrote, of any class."""
    path = Path(str(place))
    return path.is_dir() and config.is_ours(config.read(path) or {})


def _text(entry: Known, own: str | Path, revision: str | None, given: Mapping[str, Any]) -> TextTokenizer:
    if "text_tokenizer" in given and not isinstance(given["text_tokenizer"], str | Path):
        tokenizer: TextTokenizer = given["text_tokenizer"]
        return tokenizer
    inside = own if entry.text_subfolder is None else _below(own, entry.text_subfolder)
    place = given.get("text_tokenizer", entry.text_tokenizer or inside)
    return text_tokenizer(place, entry.special_ids(), revision if place is inside else None)


def _below(place: str | Path, subfolder: str) -> str | Path:
    return place / subfolder if isinstance(place, Path) else f"{place.rstrip('/')}/{subfolder}"


def _written_front(front: object) -> Any:
    for name, entry in known.KNOWN.items():
        if entry.front_object() == front:
            return name
    return values.encoded(front, "front")


def _read_front(written: Any) -> object:
    if isinstance(written, str):
        return known.find("", written)[1].front_object()
    return values.decoded(written, "front")
