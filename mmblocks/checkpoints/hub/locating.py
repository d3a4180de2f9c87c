"""What a user may name: a folder or file, a repository of the Hub, or an entry of the catalogue."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.checkpoints import config
from mmblocks.checkpoints.hub import catalogue
from mmblocks.configurable import Configurable


class Place(NamedTuple):
    """What to load, and where from.

    Attributes:
        cls: the class.
        layout: the name of the layout, where it is given.
        path: the folder or file.
        root: what others may replace as a whole while it is read.
        source: what the user named, in short.
        revision: the commit, if it came from the Hub.
        ignored: entries of a published config that are left out.
    """

    cls: type[Any]
    layout: str | None
    path: Path
    root: Path
    source: str
    revision: str | None
    ignored: tuple[str, ...] = ()


def locate(
    cls: type[Configurable],
    name: str | Path,
    subfolder: str | None,
    revision: str | None,
    layout: str | None,
    given: Collection[str],
    ignored: tuple[str, ...] = (),
) -> Place:
    """The folder or file to load from; what is needed of a repository is downloaded.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a subfolder that is not inside the folder, or a revision of a local folder.
    """
    if subfolder is not None:
        config.checked_subfolder(subfolder, "subfolder")
    folder = Path(name)
    # A Path never leads to the network.
    if folder.exists() or not isinstance(name, str):
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {folder} is a local folder; accepted: None")
        return _local(cls, folder, subfolder, layout)._replace(ignored=ignored)

    from mmblocks.checkpoints.hub import fetching
    from mmblocks.checkpoints.hub import repository as hub

    entry = catalogue.find(name)
    if entry is None:
        found = hub.split_id(name)
        if found is None:
            raise FileNotFoundError(
                f"no such folder: {folder}; accepted: a folder, organisation/name on the Hub, or a catalogued name"
            )
        repo, path = found
    elif entry.id is None:
        raise FileNotFoundError(f"{name} is on no Hub that is known; download it, and name the file: {entry.note or entry.source}")
    else:
        repo, path = entry.id, entry.path
        cls, layout, revision = _class(cls, entry), layout or entry.layout, revision or entry.revision
    path = "/".join(filter(None, (path, subfolder)))
    repository = hub.find(repo, revision)
    local = fetching.fetch(cls, repository, path, layout, given, ignored)
    return Place(cls, layout, local, local, f"{repo}/{path}".rstrip("/"), repository.commit, ignored)


def _class(cls: type[Configurable], entry: catalogue.Pretrained) -> type[Any]:
    """The class of an entry, where a more general one was named."""
    known = entry.block_class()
    return known if issubclass(known, cls) else cls


def _local(cls: type[Configurable], folder: Path, subfolder: str | None, layout: str | None) -> Place:
    path = folder
    if subfolder is not None:
        path = folder / subfolder
        if path.resolve() != folder.resolve() / subfolder:
            raise ValueError(f"subfolder is {subfolder!r}, a link; accepted: a folder inside {folder}")
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    return Place(cls, layout, path, folder, path.name or str(path), None)
