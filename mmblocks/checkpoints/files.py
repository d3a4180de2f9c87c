"""Which tensors a folder holds, told from the headers of its files, and reading them one at a time."""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".index.json"

_USUAL_NAMES = ("model", "diffusion_pytorch_model", "pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor in a file: on the meta device, which tells its shape and dtype, and how to read it onto the CPU."""

    meta: Tensor
    read: Callable[[], Tensor]


class Stored(Mapping[str, Tensor]):
    """The tensors of one or several files. Each is read when it is asked for.

    Attributes:
        meta: the tensors on the meta device; nothing is read for them.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self.meta = {key: entry.meta for key, entry in entries.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self._entries[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open_own(folder: Path) -> Stored:
    """The tensors that a Block wrote into a folder; none where it has none of its own."""
    names = ("model.safetensors", f"model.safetensors{INDEX}")
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(names)}; one must be a leftover")
    return Stored(_open(found[0], None) if found else {})


def open_published(path: Path, unwrap: str | None) -> Stored:
    """The tensors of a published folder, or of one file of it.

    Args:
        path: the folder or file.
        unwrap: the key under which a pickled file holds its tensors, such as "model" or "model.sd", None for its top.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: it holds several sets of them; an index is not sound; a file is broken, or is not what it says it is.
    """
    file = path if path.is_file() else _choose(path)
    return Stored(_open(file, unwrap))


def _choose(folder: Path) -> Path:
    """The one file, or index of several, that holds a folder's weights; safetensors before anything pickled."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    for kinds in ((SAFETENSORS,), PICKLES):
        endings = tuple(ending for kind in kinds for ending in (kind, kind + INDEX))
        found = [file for file in files if file.name.endswith(endings) and not _SHARD.search(file.name)]
        usual = [file for file in found if file.name in {name + ending for name in _USUAL_NAMES for ending in endings}]
        candidates = usual or found
        if len(candidates) > 1:
            names = ", ".join(file.name for file in candidates)
            raise ValueError(f"{folder} holds several sets of weights: {names}; name one: from_pretrained('{candidates[0]}')")
        if candidates:
            return candidates[0]
    raise FileNotFoundError(f"{folder} holds no weights; accepted: {SAFETENSORS}, {', '.join(PICKLES)}")


def _open(file: Path, unwrap: str | None) -> dict[str, Entry]:
    if file.name.endswith(INDEX):
        return _open_index(file, unwrap)
    if file.suffix == SAFETENSORS:
        return _open_safetensors(file)
    if file.suffix in PICKLES:
        return _open_pickle(file, unwrap)
    raise ValueError(f"{file} is no file of weights; accepted: {SAFETENSORS}, {', '.join(PICKLES)}")


def _open_index(index: Path, unwrap: str | None) -> dict[str, Entry]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError):
        places = None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} is not an index: expected an object 'weight_map' of tensor and file names")
    kind = Path(index.name.removesuffix(INDEX)).suffix
    files = {name: _open(_beside(index, name, kind), unwrap) for name in sorted(set(places.values()))}
    for key, name in places.items():
        if key not in files[name]:
            raise ValueError(f"{index} says that {key} is in {name}, but it is not")
    return {key: files[name][key] for key, name in places.items()}


def _beside(index: Path, name: str, kind: str) -> Path:
    """The file that an index names. An index is data from elsewhere: it must not lead out of its folder."""
    file = index.parent / name
    if "/" in name or "\\" in name or ":" in name or not name.endswith(kind):
        raise ValueError(f"{index} names {name!r}; accepted: names of {kind} files in the same folder")
    if not file.is_file():
        raise FileNotFoundError(f"{index} names {name!r}, which is not there")
    folder, target = index.parent.resolve(), file.resolve()
    # In the Hub's cache every file is a link from <repository>/snapshots/<revision>/ to <repository>/blobs/.
    in_hub_cache = target.parent.name == "blobs" and target.parents[1] / "snapshots" in folder.parents
    if target.parent != folder and not in_hub_cache:
        raise ValueError(f"{index} names {name!r}, a link that leads out of the folder, to {target}")
    return file


def _open_safetensors(file: Path) -> dict[str, Entry]:
    try:
        reader = safe_open(file, framework="pt", device="cpu")
        slices = {key: reader.get_slice(key) for key in reader.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no valid safetensors file: {error}") from error
    entries = {}
    for key, header in slices.items():
        if header.get_dtype() not in _DTYPES:
            raise ValueError(f"{file}: {key} has the unknown dtype {header.get_dtype()}")
        meta = torch.empty(header.get_shape(), dtype=_DTYPES[header.get_dtype()], device="meta")
        entries[key] = Entry(meta, partial(reader.get_tensor, key))
    return entries


def _open_pickle(file: Path, unwrap: str | None) -> dict[str, Entry]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as plain tensors; convert it to safetensors at its source: {error}") from error
    for key in unwrap.split(".") if unwrap else ():
        content = content.get(key) if isinstance(content, dict) else None
    where = f"{file} under {unwrap!r}" if unwrap else f"{file}"
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a dict of tensors, but found {type(content).__name__}")
    return {key: _pickled(where, key, tensor) for key, tensor in content.items()}


def _pickled(where: str, key: Any, tensor: Any) -> Entry:
    if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise ValueError(f"{where}: entry {key!r} is a {type(tensor).__name__}; expected names and dense tensors alone")
    # A file of a kilobyte can claim a tensor of a terabyte, each of whose elements is the same one.
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where}: {key} of shape {tuple(tensor.shape)} is larger than its data")
    return Entry(torch.empty_like(tensor, device="meta"), lambda: tensor.detach())
