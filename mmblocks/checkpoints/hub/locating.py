"""What a user may name: a folder or file, a repository of the Hub, or an entry of the catalogue."""

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from mmblocks.checkpoints import config
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.origin import Place
from mmblocks.configurable import Configurable

B = TypeVar("B", bound=Configurable)


def locate(
    cls: type[B],
    name: str | Path,
    *,
    subfolder: str | None,
    revision: str | None,
    layout: str | None,
    ignored: tuple[str, ...] = (),
    given: Collection[str] = (),
) -> Place[B]:
    """The folder or file to load from; what is needed of a repository is downloaded.

    Args:
        cls: the class, where the catalogue knows no narrower one.
        name: as the user gave it.
        subfolder: of the part that is loaded alone.
        revision: on the Hub.
        layout: the name of the layout, where it is given.
        ignored: entries of a published config that are left out.
        given: names of arguments that are handed in, for which nothing is downloaded.

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
        path = _local(folder, subfolder)
        return Place(cls, path, folder, path.name or str(path), None, layout, ignored)

    from mmblocks.checkpoints.hub import fetching
    from mmblocks.checkpoints.hub import repository as hub

    entry = catalogue.find(name)
    if entry is None:
        found = hub.split_id(name)
        if found is None:
            raise FileNotFoundError(
                f"no such folder: {folder}; accepted: a folder, organisation/name on the Hub, or a catalogued name"
            )
        repo, inside = found
    elif entry.id is None:
        raise FileNotFoundError(f"{name} is on no Hub that is known; download it, and name the file: {entry.note or entry.source}")
    else:
        repo, inside = entry.id, entry.path
        known = entry.block_class()
        cls = known if issubclass(known, cls) else cls
        layout, revision = layout or entry.layout, revision or entry.revision
    inside = "/".join(filter(None, (inside, subfolder)))
    repository = hub.find(repo, revision)
    path = fetching.fetch(cls, repository, inside, layout, given, ignored)
    return Place(cls, path, path, f"{repo}/{inside}".rstrip("/"), repository.commit, layout, ignored)


def _local(folder: Path, subfolder: str | None) -> Path:
    path = folder
    if subfolder is not None:
        path = folder / subfolder
        if path.resolve() != folder.resolve() / subfolder:
            raise ValueError(f"subfolder is {subfolder!r}, a link; accepted: a folder inside {folder}")
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    return path
