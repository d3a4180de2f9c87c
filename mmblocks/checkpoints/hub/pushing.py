"""Uploading a Block: the folder that ``save_pretrained`` writes, and a model card.

The card says what the Block is, how to load it, where it came from, under which terms, and how it was checked.
"""

import tempfile
from pathlib import Path

from mmblocks.checkpoints import save
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.hub import repository as hub
from mmblocks.checkpoints.hub.catalogue import Pretrained
from mmblocks.configurable import Configurable, name_of

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def push(
    block: Configurable, repo: str, private: bool | None, message: str, revision: str | None, max_shard_size: int | str
) -> str:
    """See ``Block.push_to_hub``."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "block")
        save.save(block, folder, max_shard_size)
        (folder / "README.md").write_text(model_card(block, repo), encoding="utf-8")
        # A Block that is smaller than the one before leaves no shards of it.
        inside = [path.parent.relative_to(folder).as_posix() for path in folder.rglob("config.json") if path.parent != folder]
        stale = [*_WEIGHTS, *(f"{name}/{pattern}" for name in inside for pattern in _WEIGHTS)]
        return hub.push(folder, repo, private=private, message=message, revision=revision, stale=stale)


def model_card(block: Configurable, name: str) -> str:
    """The text of a README.md for the Hub.

    Args:
        block: what is published.
        name: the Hub's id, or what else ``from_pretrained`` is to be called with.
    """
    entry = known_origin(block)
    return (
        "\n\n".join([_head(entry), f"# {name}", _what(block), _loading(block, name), _origin(block, entry), _parity(entry)]) + "\n"
    )


def known_origin(block: Configurable) -> Pretrained | None:
    """The catalogue's entry for the checkpoint that a Block came from."""
    if block.origin is None:
        return None
    for entry in catalogue.list_pretrained():
        source = "/".join(filter(None, (entry.id, entry.path)))
        if entry.layout == block.origin.layout and entry.id is not None and source == block.origin.source:
            return entry
    return None


def _head(entry: Pretrained | None) -> str:
    lines = ["library_name: mmblocks", "tags:", "- mmblocks"]
    if entry is not None and entry.license is not None:
        lines.append(f"license: {entry.license}")
    if entry is not None and entry.id is not None:
        lines.append(f"base_model: {entry.id}")
    return "\n".join(["---", *lines, "---"])


def _what(block: Configurable) -> str:
    text = (type(block).__doc__ or "").strip().partition("\n\n")[0]
    summary = " ".join(line.strip() for line in text.splitlines())
    count = sum(parameter.numel() for parameter in block.parameters())
    return f"A `{name_of(type(block))}` of mmblocks with {count:,} parameters. {summary}".strip()


def _loading(block: Configurable, name: str) -> str:
    cls = name_of(type(block))
    module, _, bare = cls.rpartition(".")
    return f"```python\nfrom {module or 'mmblocks'} import {bare}\n\nblock = {bare}.from_pretrained({name!r})\n```"


def _origin(block: Configurable, entry: Pretrained | None) -> str:
    if block.origin is None:
        return "## Origin\n\nNot converted from a published checkpoint. Licence: not stated."
    terms = entry.license if entry is not None and entry.license is not None else "see there"
    paper = f" Paper: [arXiv {entry.paper}](https://arxiv.org/abs/{entry.paper})." if entry is not None and entry.paper else ""
    back = f"`block.to_upstream(folder)` writes the layout `{block.origin.layout}` back."
    return f"## Origin\n\nLoaded from {block.origin}. Licence: {terms}.{paper} {back}"


def _parity(entry: Pretrained | None) -> str:
    if entry is None or entry.parity is None:
        return "## Parity\n\nNothing is stated about parity with other code."
    return f"## Parity\n\nmmblocks compares the class with the official code ({entry.source}) in its golden cases `{entry.parity}`."
