"""Which Blocks a checkpoint is, or holds as a part, told from its headers."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmblocks import public
from mmblocks.block import Block
from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import stored as files
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.hub import repository as hub
from mmblocks.checkpoints.layouts import published
from mmblocks.checkpoints.layouts.layout import Layout

Headers = Callable[[str | None], Mapping[str, Tensor]]
"""Gives the tensors on the meta device, for a layout's ``unwrap``."""


class Fit(NamedTuple):
    """A Block that a published checkpoint fits exactly."""

    block: type[Block]
    layout: Layout
    num_parameters: int


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        config: of the folder; empty where there is none.
        headers: the tensors, those of the parts of a folder that a Block wrote included.
        other: the content of another config file of the folder by its name; empty where there is none.
    """

    config: dict[str, Any]
    headers: Headers
    other: Callable[[str], dict[str, Any]] = lambda name: {}

    def config_of(self, layout: Layout) -> dict[str, Any]:
        """What a layout reads its arguments from."""
        return layout.joined(lambda name: self.config if name == config.FILE else self.other(name))


def contents(name: str, revision: str | None, subfolder: str | None) -> Contents:
    """Of a folder, a file, a repository on the Hub or an entry of the catalogue; no weights are read.

    Raises:
        FileNotFoundError: there is no such thing.
        ValueError: files that are not sound, or that have to be downloaded to be looked into.
    """
    path = local_path(name, revision, subfolder)
    return local(path) if path is not None else _remote(*on_the_hub(name, revision, subfolder))


def local_path(name: str, revision: str | None, subfolder: str | None) -> Path | None:
    """The folder or file of that name, or the subfolder in it; None where there is none, and the Hub may know it.

    Raises:
        FileNotFoundError: a folder without that subfolder.
        ValueError: a subfolder that is not inside the folder, or a revision of a local folder.
    """
    if subfolder is not None:
        config.checked_subfolder(subfolder, "subfolder")
    path = Path(name)
    if not path.exists():
        return None
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {path} is local; accepted: a repository on the Hub")
    if subfolder is None:
        return path
    if not (path / subfolder).exists():
        raise FileNotFoundError(f"{path} holds no folder {subfolder!r}")
    return path / subfolder


def golden_beside(name: str, revision: str | None, subfolder: str | None) -> Path | None:
    """The golden numbers beside the weights of what ``contents`` takes, if there are any; a file on the Hub is downloaded."""
    path = local_path(name, revision, subfolder)
    if path is not None:
        file = (path if path.is_dir() else path.parent) / files.GOLDEN
        return file if file.is_file() else None
    repository, inside = on_the_hub(name, revision, subfolder)
    folder = inside.rpartition("/")[0] if inside in repository.files else inside
    remote = "/".join(filter(None, (folder, files.GOLDEN)))
    return repository.get(remote) if remote in repository.files else None


def on_the_hub(name: str, revision: str | None, subfolder: str | None) -> tuple[hub.Repository, str]:
    """The repository, and the path inside it."""
    entry = catalogue.find(name)
    found = (entry.id, entry.path) if entry is not None and entry.id is not None else hub.split_id(name)
    if found is None:
        raise FileNotFoundError(f"no such folder: {name}; accepted: a folder, organisation/name on the Hub, or a catalogued name")
    revision = revision or (entry.revision if entry is not None else None)
    return hub.find(found[0], revision), "/".join(filter(None, (found[1], subfolder)))


def local(path: Path) -> Contents:
    """Of a folder or file."""
    content = (config.read(path) or {}) if path.is_dir() else {}
    if not config.is_ours(content):
        others = (lambda name: config.read(path, name) or {}) if path.is_dir() else (lambda name: {})
        return Contents(content, lambda unwrap: files.open_published(path, unwrap).meta, others)
    found = dict(files.open_own(path).meta)
    for name in dict.fromkeys(config.subfolders(content)):
        part = local(config.part_folder(path, name)).headers(None)
        found |= {f"{name}/{key}": tensor for key, tensor in part.items()}
    return Contents(content, lambda unwrap: found)


def fits(found: Contents) -> list[Fit]:
    """All pairs of a class and a layout that know every tensor's name, and whose shapes agree.

    A class whose arguments are not in the published config cannot be built, and is left out.
    """
    fitting = []
    for cls in _classes():
        for layout in cls.layouts:
            try:
                meta = found.headers(layout.unwrap)
                content = found.config_of(layout)
                made = partial(published.instance, cls, layout, content, {})
                if not published.fits(layout, meta, content, made):
                    continue
                block = made()
                difference = layout.check({key: tuple(tensor.shape) for key, tensor in meta.items()}, block)
            except (ValueError, TypeError, ImportError):
                continue
            if not difference:
                fitting.append(Fit(cls, layout, sum(parameter.numel() for parameter in block.parameters())))
    return fitting


def choose(path: Path, name: str | None) -> type[Block]:
    """The class called ``name``; without a name the one a folder was saved by, or the only one that fits.

    Raises:
        ValueError: none or several fit, or there is no class of that name.
    """
    if name is not None:
        module = public.home(name)
        known = None if module is None else _found(module, name)
        if not isinstance(known, type) or not issubclass(known, Block):
            raise ValueError(f"block is {name!r}; accepted: the name of a Block of mmblocks")
        return known
    found = local(path)
    if config.is_ours(found.config):
        return Block
    classes = {fit.block for fit in fits(found)}
    if not classes:
        found.headers(None)  # a file that cannot be read says so
    if len(classes) != 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes)) or "no Block"
        raise ValueError(f"{names} of mmblocks fit {path}; name the one that is meant with --block")
    return classes.pop()


def _remote(repository: hub.Repository, path: str) -> Contents:
    if path in repository.files:
        found = _remote_file(repository, path)
        return Contents({}, lambda unwrap: found)
    names = repository.folder(path)
    prefix = f"{path}/" if path else ""
    content = (config.read(repository.get(f"{prefix}{config.FILE}").parent) or {}) if config.FILE in names else {}
    if not config.is_ours(content):
        found = _remote_file(repository, prefix + files.choose(names, f"{repository.name}/{path}".rstrip("/")))

        def other(name: str) -> dict[str, Any]:
            return (config.read(repository.get(prefix + name).parent, name) or {}) if name in names else {}

        return Contents(content, lambda unwrap: found, other)
    own = [name for name in names if name in ("model.safetensors", f"model.safetensors{files.INDEX}")]
    found = _remote_file(repository, prefix + own[0]) if own else {}
    for name in dict.fromkeys(config.subfolders(content)):
        part = _remote(repository, prefix + name).headers(None)
        found |= {f"{name}/{key}": tensor for key, tensor in part.items()}
    return Contents(content, lambda unwrap: found)


def _remote_file(repository: hub.Repository, path: str) -> dict[str, Tensor]:
    if path.endswith(f"{files.SAFETENSORS}{files.INDEX}"):
        shards = files.places(repository.get(path))
        folder = path[: path.rfind("/") + 1]
        return {key: tensor for name in sorted(set(shards.values())) for key, tensor in repository.headers(folder + name).items()}
    if not path.endswith(files.SAFETENSORS):
        raise ValueError(f"{path} of {repository.name} is pickled; download it to look into it, since it has no header")
    return repository.headers(path)


def _found(module: str, name: str) -> object:
    return getattr(import_module(module), name)  # a public name


def _classes() -> Iterator[type[Block]]:
    for name, module in public.all_names().items():
        found = _found(module, name)
        if isinstance(found, type) and issubclass(found, Block) and found.layouts:
            yield found
