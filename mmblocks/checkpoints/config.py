"""config.json: a Block's class and arguments as JSON, and the checks that it means exactly what it says.

``{"_block": "trunk"}`` stands for the Block in that subfolder, ``{"_kind": "Attention", ...}`` for a description of that class,
``{"_code": "module.function"}`` for a function, of which only the name is noted; see ``functions``. Lists and tuples both become
JSON lists, and are tuples when read. ``_shared_tensors`` names the tensors that are not stored because they are the same as
another: ``{"head.weight": "embedding.weight"}``; see ``checksums`` and ``origin`` for the other entries that are no arguments.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from mmblocks.checkpoints import building
from mmblocks.checkpoints.files import untrusted
from mmblocks.configurable import Configurable, Description, find, name_of, parameters, parts, required
from mmblocks.support.pickling import qualified_name

FILE = "config.json"
CLASS = "_class_name"
VERSION = "_mmblocks_version"
SHARED = "_shared_tensors"
CHECKSUMS = "_checksums"
ORIGIN = "_origin"
BLOCK = "_block"
CODE = "_code"
KIND = "_kind"

_OURS = (CLASS, VERSION, SHARED, CHECKSUMS, ORIGIN)

_ACCEPTED = "accepted: None, bool, int, float, str, Blocks, descriptions, and lists, tuples or dicts of these"


def read(folder: Path, name: str = FILE) -> dict[str, Any] | None:
    """The content of a folder's config.json, or of another file of JSON; None where there is no such file.

    Raises:
        ValueError: it is not a JSON object.
    """
    content = untrusted.read_object(folder, name)
    return content if content is None or not is_ours(content) else untrusted.read_object(folder, name, unique=True)


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a Block wrote it. diffusers, too, names a class, so the class alone does not tell."""
    return isinstance(content.get(CLASS), str) and VERSION in content


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """What remains without our own entries."""
    return {name: value for name, value in content.items() if name not in _OURS}


def without(content: Mapping[str, Any], entries: Iterable[str]) -> dict[str, Any]:
    """A published config without some entries, which are named with dots where they stand inside others.

    Raises:
        ValueError: there is no such entry.
    """
    left = dict(content)
    for entry in entries:
        path = _path(left, entry)
        if not path:
            raise ValueError(f"ignored_entries names {entry!r}; the config has: {', '.join(content) or 'nothing'}")
        inner = left
        for name in path[:-1]:
            inner[name] = dict(inner[name])
            inner = inner[name]
        del inner[path[-1]]
    return left


def _path(content: object, entry: str) -> tuple[str, ...]:
    """The names that lead to an entry, each of which may have dots of its own; none where there is no such entry."""
    if not isinstance(content, dict):
        return ()
    if entry in content:
        return (entry,)
    for name in content:
        rest = _path(content[name], entry.removeprefix(f"{name}.")) if entry.startswith(f"{name}.") else ()
        if rest:
            return (name, *rest)
    return ()


def shared(content: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors that are the tensor of another name: name -> the name under which it is stored."""
    names = content.get(SHARED, {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{FILE}: {SHARED!r} is {names!r}; accepted: an object of names")
    return names


def check_arguments(cls: type[Any], names: Iterable[str], origin: str) -> None:
    """Refuses names that the class does not take.

    Raises:
        ValueError: names the origin, the unknown argument, its nearest neighbour and what is accepted.
    """
    accepted = parameters(cls)
    for name in names:
        if name not in accepted:
            close = get_close_matches(name, accepted, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            listed = ", ".join(accepted) or "none"
            raise ValueError(f"{origin} of {cls.__name__}: unknown argument {name!r}{hint} accepted: {listed}")


def check_complete(cls: type[Any], given: Mapping[str, Any], origin: str) -> None:
    """Refuses arguments that lack a required one, with a ``ValueError`` that names it."""
    lacking = [name for name in required(cls, given) if name not in given]
    if lacking:
        raise ValueError(f"{origin} of {cls.__name__}: missing argument {', '.join(map(repr, lacking))}")


def encode(block: Configurable) -> tuple[dict[str, Any], dict[str, Configurable]]:
    """A Block's arguments as JSON, and the Blocks among them by subfolder. A Block given twice has one subfolder.

    Raises:
        TypeError: an argument that JSON cannot hold; the message says which and what to do about it.
        ValueError: a dict key that cannot be the name of a folder.
    """
    places: dict[int, str] = {}
    blocks: dict[str, Configurable] = {}

    def encoded(value: object, path: str) -> Any:
        if isinstance(value, Configurable):
            if id(value) not in places:
                places[id(value)] = path
                blocks[path] = value
            return {BLOCK: places[id(value)]}
        if isinstance(value, Description):
            _check_fields(block, value, path)
            return {KIND: name_of(type(value)), **{name: encoded(item, f"{path}/{name}") for name, item in value.entries().items()}}
        if isinstance(value, dict):
            _check_keys(block, value, path)
            return {key: encoded(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [encoded(item, f"{path}/{number}") for number, item in enumerate(value)]
        if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
            return value
        if callable(value) and not isinstance(value, nn.Module) and "/" not in path:
            return {CODE: f"{value.__module__}.{qualified_name(value)}"}
        raise TypeError(_refusal(block, value, path))

    return {name: encoded(value, name) for name, value in block.config.items()}, blocks


def decode(value: object, load: Callable[[str], Configurable]) -> Any:
    """An argument as the constructor takes it; ``load`` gives the Block in a subfolder.

    Raises:
        ValueError: a subfolder that is not inside the folder.
    """
    if isinstance(value, dict):
        if BLOCK in value:
            return load(checked_subfolder(value[BLOCK]))
        if KIND in value:
            return _described(value, load)
        return {key: decode(item, load) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(decode(item, load) for item in value)
    return value


def _described(value: Mapping[str, Any], load: Callable[[str], Configurable]) -> Description:
    """A description by its class and fields, which a file may get wrong."""
    cls = find(str(value[KIND]))
    if not issubclass(cls, Description):
        raise ValueError(f"{FILE}: {KIND!r} is {value[KIND]!r}; accepted: the name of a description")
    given = {name: decode(item, load) for name, item in value.items() if name != KIND}
    check_arguments(cls, given, FILE)
    check_complete(cls, given, FILE)
    building.check_types(cls, given, FILE)
    return cls(**given)


def places(content: Mapping[str, Any]) -> dict[str, str]:
    """Where a config names Blocks: the path of the argument, such as ``"layers/0"``, -> the subfolder; empty if it is not ours."""

    def found(value: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and BLOCK in value:
            yield path, checked_subfolder(value[BLOCK])
        elif isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from found(item, f"{path}/{name}")

    return {path: name for key, value in arguments(content).items() for path, name in found(value, key)} if is_ours(content) else {}


def subfolders(content: Mapping[str, Any]) -> list[str]:
    """The subfolders of Blocks that a config names; none if it is not ours."""
    return list(places(content).values())


def checked_subfolder(name: object, what: str = f"{FILE}: {BLOCK!r}") -> str:
    """A relative path that leads down, or ``ValueError``: a config is data from elsewhere."""
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\:]+(/[^/\\:]+)*", name) or {".", ".."} & set(name.split("/")):
        raise ValueError(f"{what} is {name!r}; accepted: the path of a subfolder")
    return name


def part_folder(folder: Path, name: str) -> Path:
    """The subfolder of a Block's part, which must not be a link: it could lead out, or in a circle."""
    path = folder / checked_subfolder(name)
    if path.resolve() != folder.resolve() / name:
        raise ValueError(f"{folder / FILE}: {BLOCK!r} is {name!r}, a link; accepted: a folder")
    if not path.is_dir():
        raise FileNotFoundError(f"{folder / FILE} names the part {name!r}, but there is no folder {path}")
    return path


def _check_fields(block: Configurable, value: Description, path: str) -> None:
    """A description is built many times; a Block in it would be one for all of them, and in no place of its own."""
    held = next(parts(value.entries()), None)
    if held is not None:
        what = f"{type(block).__name__} cannot be saved: argument {path!r}, a {type(value).__name__}, holds a {type(held).__name__}"
        raise TypeError(f"{what}; accepted in a description: JSON values, and descriptions")


def _check_keys(block: Configurable, value: Mapping[Any, Any], path: str) -> None:
    """Keys become names of folders where the dict holds Blocks."""
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{type(block).__name__}: argument {path!r} has the key {key!r}; accepted: str")
        if key in (BLOCK, CODE, KIND):
            raise ValueError(f"{type(block).__name__}: argument {path!r} has the key {key!r}, which {FILE} keeps for itself")
        if any(True for _ in parts(value[key])) and (not key or key.startswith(".") or any(c in key for c in "/\\:\0")):
            raise ValueError(f"{type(block).__name__}: argument {path!r} has the key {key!r}, which cannot name a folder")


def _refusal(block: Configurable, value: object, path: str) -> str:
    what = f"{type(block).__name__} cannot be saved: argument {path!r} is a {type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return f"{what}, and no Block; wrap it in a Block whose arguments say how to build it"
    if callable(value):
        return f"{what}, which is code; give it an argument of its own, and hand it in again when loading"
    return f"{what}: {value!r}; {_ACCEPTED}"
