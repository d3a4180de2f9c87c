"""Downloading what one Block needs of a repository, and nothing else."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import stored as files
from mmblocks.checkpoints.hub.repository import Repository
from mmblocks.checkpoints.layouts import preprocessing, published
from mmblocks.configurable import Configurable

_INDEX = f"model.safetensors{files.INDEX}"


def fetch(
    cls: type[Configurable],
    repository: Repository,
    path: str,
    layout: str | None,
    given: Collection[str],
    ignored: Collection[str] = (),
) -> Path:
    """Downloads a Block's files and gives the folder, or the file, to load it from.

    Args:
        cls: the class that is loaded.
        repository: where from.
        path: a folder or file in it; empty for all of it.
        layout: the name of the published layout, if it was given.
        given: arguments that were handed in, so that their files are not needed.
        ignored: entries of a published config that are left out.

    Raises:
        FileNotFoundError: there is no such folder, or no weights in it.
        ValueError: an index leads out of the repository, or no layout of the class fits.
    """
    if path in repository.files:
        return _fetch_file(cls, repository, path, layout)
    names = repository.folder(path)
    if not names:
        raise FileNotFoundError(f"{repository.name} holds nothing called {path!r}")
    if config.FILE not in names:
        return _fetch_published(cls, repository, path, layout, {})
    folder = repository.get(_join(path, config.FILE)).parent
    content = config.read(folder) or {}
    if not config.is_ours(content):
        return _fetch_published(cls, repository, path, layout, config.without(content, preprocessing.of_config(ignored)))
    _fetch_own(repository, path, content, given)
    return folder


def _fetch_own(repository: Repository, path: str, content: dict[str, Any], given: Collection[str]) -> None:
    names = repository.folder(path)
    folder = repository.get(_join(path, config.FILE)).parent
    if "model.safetensors" in names:
        repository.get(_join(path, "model.safetensors"))
    if _INDEX in names:
        for shard in sorted(set(files.places(repository.get(_join(path, _INDEX))).values())):
            repository.get(_join(path, shard))
    for place, name in config.places(content).items():
        # Of a part that was handed in, the config alone is needed: it is compared with the checksums.
        if config.FILE not in repository.folder(_join(path, name)):
            raise FileNotFoundError(f"{folder / config.FILE} names the part {name!r}, but {repository.name} does not hold it")
        part = config.read(repository.get(_join(path, name, config.FILE)).parent) or {}
        if place.partition("/")[0] not in given:
            _fetch_own(repository, _join(path, name), part, ())


def _fetch_published(
    cls: type[Configurable], repository: Repository, path: str, layout: str | None, content: dict[str, Any]
) -> Path:
    where = f"{repository.name}/{path}".rstrip("/")
    candidates = published.layouts(cls, where, layout)  # before anything large is downloaded
    names = repository.folder(path)
    chosen = files.choose(names, where, [entry.weights for entry in candidates])
    images = preprocessing.FILES if any(entry.preprocessor is not None for entry in candidates) else ()
    for name in {*images, *(name for entry in candidates for name in entry.config_files)} & {*names}:
        repository.get(_join(path, name))
    return _fetch_file(cls, repository, _join(path, chosen), layout, content).parent


def _fetch_file(
    cls: type[Configurable], repository: Repository, path: str, layout: str | None, content: dict[str, Any] | None = None
) -> Path:
    """One file of weights, or an index and those of its files that hold something of the Block."""
    candidates = published.layouts(cls, f"{repository.name}/{path}", layout)
    file = repository.get(path)
    if not path.endswith(files.INDEX):
        return file
    shards = files.places(file)
    contents = {entry.name: published.config_of(entry, file.parent, content or {}) for entry in candidates}
    fitting = [entry for entry in candidates if layout is not None or entry.fits(shards, contents[entry.name])]
    keys = [key for key in shards if any(entry.to_ours(key) != () for entry in fitting)]
    if not fitting:
        names = dict.fromkeys(shards, "of a shape that is not known yet")
        reasons = [published.Reason.of(entry, names, contents[entry.name]) for entry in candidates]
        raise ValueError(published.fits_none(f"{repository.name}/{path}", cls, reasons))
    for shard in sorted({shards[key] for key in keys}):
        repository.get(_join(path.rpartition("/")[0], shard))
    return file


def _join(*names: str) -> str:
    return "/".join(name for name in names if name)
