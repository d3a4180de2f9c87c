"""The folders of a pipeline of diffusers: where its denoising network lies, and what its scheduler is told."""

from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.checkpoints.files import untrusted

_SCHEDULER = "scheduler/scheduler_config.json"

_NETWORKS = ("transformer", "unet")


class Pipeline(NamedTuple):
    """What a pipeline's folders say.

    Attributes:
        network: the folder of the denoising network.
        scheduler: the scheduler's config.
        revision: the commit on the Hub that all was found in; None for a local folder.
    """

    network: str
    scheduler: dict[str, Any]
    revision: str | None


def find_pipeline(id_or_path: str | Path, revision: str | None = None) -> Pipeline:
    """A pipeline in a local folder, or on the Hub, where a path inside the repository may follow its name.

    Raises:
        FileNotFoundError: there is none, or it has no scheduler or network.
        PermissionError, ConnectionError: the Hub refuses, or cannot be reached.
        ValueError: a revision of a local folder, or a config that is no JSON object.
    """
    folder = Path(id_or_path)
    if folder.exists() or not isinstance(id_or_path, str):
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {folder} is a local folder; accepted: None")
        names = {f"{name}/config.json" for name in _NETWORKS if (folder / name / "config.json").is_file()}
        config, commit = untrusted.read_object(folder / "scheduler", "scheduler_config.json"), None
    else:
        from mmblocks.checkpoints.hub import repository as hub

        found = hub.split_id(id_or_path)
        if found is None:
            raise FileNotFoundError(f"no such folder: {folder}; accepted: a folder, or organisation/name on the Hub")
        repository, inside = hub.find(found[0], revision), f"{found[1].rstrip('/')}/" if found[1] else ""
        names = {name.removeprefix(inside) for name in repository.files if name.startswith(inside)}
        commit = repository.commit
        config = untrusted.read_json(repository.get(inside + _SCHEDULER)) if _SCHEDULER in names else None
    network = next((name for name in _NETWORKS if f"{name}/config.json" in names), None)
    if network is None or config is None:
        wanted = f"{_SCHEDULER}, and config.json in {' or '.join(_NETWORKS)}"
        raise FileNotFoundError(f"{id_or_path} holds no pipeline of diffusers; accepted: {wanted}")
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{_SCHEDULER} of {id_or_path} names no class; accepted: an object with _class_name")
    return Pipeline(network, config, commit)
