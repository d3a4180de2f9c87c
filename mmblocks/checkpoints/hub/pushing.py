"""Uploading a Block: the folder that ``save_pretrained`` writes, and a model card."""

import tempfile
from pathlib import Path

from mmblocks.checkpoints import save
from mmblocks.checkpoints.hub import card
from mmblocks.checkpoints.hub import repository as hub
from mmblocks.configurable import Configurable

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def push(
    block: Configurable, repo: str, private: bool | None, message: str, revision: str | None, max_shard_size: int | str
) -> str:
    """See ``Block.push_to_hub``."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "block")
        save.save(block, folder, max_shard_size)
        (folder / "README.md").write_text(card.model_card(block, repo), encoding="utf-8")
        # A Block that is smaller than the one before leaves no shards of it.
        inside = [path.parent.relative_to(folder).as_posix() for path in folder.rglob("config.json") if path.parent != folder]
        stale = [*_WEIGHTS, *(f"{name}/{pattern}" for name in inside for pattern in _WEIGHTS)]
        return hub.push(folder, repo, private=private, message=message, revision=revision, stale=stale)
