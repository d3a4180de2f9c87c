"""Which tensors a folder holds, told from the headers of its files, and reading them one at a time."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from mmblocks.checkpoints.files import untrusted
from mmblocks.checkpoints.files.mapped import Entry
from mmblocks.checkpoints.files.pickle_files import open_pickle
from mmblocks.checkpoints.files.safetensors_files import open_safetensors

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".index.json"

GOLDEN = "golden.safetensors"
"""No weights, but what methods of a Block gave; see ``golden``."""

_USUAL_NAMES = ("model", "diffusion_pytorch_model", "pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

_PLAIN = re.compile(r"[^/\\:\0]+")
"""The name of a file, and no path."""

_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\.", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever follows the dot."""


class Stored(Mapping[str, Tensor]):
    """The tensors of one or several files. Each is read on demand.

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
    return Stored(_open(_inside(folder, found[0]), None, _any) if found else {})


def open_published(
    path: Path, unwrap: str | None, needed: Callable[[str], bool] | None = None, *, preferred: Collection[str] = ()
) -> Stored:
    """The tensors of a published folder, or of one file of it.

    Args:
        path: the folder or file.
        unwrap: the key under which a pickled file holds its tensors, such as "model" or "model.sd", None for its top.
        needed: which names are asked for; None for all. Where an index leads to several files, those that hold none of them are
            not opened, and need not be there.
        preferred: see ``choose``.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: it holds several sets of them; an index is not sound; a file is broken, or is not what it says it is.
    """
    file = path if path.is_file() else _inside(path, path / choose(_names(path), str(path), preferred))
    return Stored(_open(file, unwrap, needed or _any))


def choose(names: Iterable[str], folder: str, preferred: Collection[str] = ()) -> str:
    """The one file, or index of several, that holds a folder's weights; safetensors before anything pickled.

    Args:
        names: of the folder's files.
        folder: for messages.
        preferred: names, without their endings, that come before all others: a folder may hold the weights of several models.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    names, own = list(names), [name for name in preferred if name not in _USUAL_NAMES]
    for kinds in ((SAFETENSORS,), PICKLES):
        endings = tuple(ending for kind in kinds for ending in (kind, kind + INDEX))
        found = sorted(name for name in names if name.endswith(endings) and not name.startswith(".") and not _SHARD.search(name))
        found = [name for name in found if name != GOLDEN]
        usual = [name for name in found if name in {name + ending for name in _USUAL_NAMES for ending in endings}]
        candidates = [name for name in found if name in {one + ending for one in own for ending in endings}] or usual or found
        if len(candidates) > 1:
            raise ValueError(
                f"{folder} holds several sets of weights: {', '.join(candidates)}; name one:"
                f" from_pretrained('{folder}/{candidates[0]}')"
            )
        if candidates:
            return candidates[0]
    raise FileNotFoundError(f"{folder} holds no weights; accepted: {SAFETENSORS}, {', '.join(PICKLES)}")


def places(index: Path) -> dict[str, str]:
    """What an index says: tensor -> file in the same folder.

    Raises:
        ValueError: it is no index, or leads out of its folder.
    """
    try:
        content = untrusted.read_json(index, unique=True)
        found = content["weight_map"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{index} is not an index: expected an object 'weight_map' of tensor and file names")
    kind = Path(index.name.removesuffix(INDEX)).suffix
    for name in set(found.values()):
        if not _PLAIN.fullmatch(name) or not name.endswith(kind) or _DEVICE.match(name):
            raise ValueError(f"{index} names {name!r}; accepted: names of {kind} files in the same folder")
    return found


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.is_file()]


def _any(key: str) -> bool:
    return True


def _open(file: Path, unwrap: str | None, needed: Callable[[str], bool]) -> dict[str, Entry]:
    if file.name.endswith(INDEX):
        return _open_index(file, unwrap, needed)
    if file.suffix == SAFETENSORS:
        return open_safetensors(file)
    if file.suffix in PICKLES:
        return open_pickle(file, unwrap)
    raise ValueError(f"{file} is no file of weights; accepted: {SAFETENSORS}, {', '.join(PICKLES)}")


def _open_index(index: Path, unwrap: str | None, needed: Callable[[str], bool]) -> dict[str, Entry]:
    everything = places(index)
    wanted = {key: name for key, name in everything.items() if needed(key)}
    files = {}
    for name in sorted(set(wanted.values())):
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name!r}, which is not there")
        file = untrusted.inside(index.parent, index.parent / name, f"{index} names {name!r}")
        files[name] = _open(file, unwrap, _any)
    for key, name in wanted.items():
        if key not in files[name]:
            raise ValueError(f"{index} says that {key} is in {name}, but it is not")
    # What lies beside them in the same files is there too, as it is where there is one file.
    return {key: files[name][key] for key, name in everything.items() if name in files and key in files[name]}


def _inside(folder: Path, file: Path) -> Path:
    return untrusted.inside(folder, file, f"{folder} holds {file.name!r}")
