"""Known published components: where their weights are, which Block reads them, and under which terms.

    mmblocks.list_pretrained("*vq*")                        # names, in the manner of timm: architecture.tag
    mmblocks.tokenizers.Emu3VQ.from_pretrained("emu3_vq.baai")         # a name is as good as an id

``catalogue.json`` beside this file holds the facts. What is not known is None there, and is not guessed.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A published component.

    Attributes:
        name: ``architecture.tag``.
        block: the public name of the class that reads it.
        layout: the name of its layout.
        id: the Hub's id; None where the weights lie elsewhere.
        path: the file or folder inside the repository; empty for all of it.
        revision: the commit it is known to work with.
        license: of the weights, as their authors call it.
        code_license: of the official code, as its repository calls it.
        num_parameters: of the Block, not of the file, which may hold other parts.
        paper: the arXiv id.
        source: the repository of the official code.
        parity: the component of the golden cases that compares the Block with the official code.
        manifest: the list of the published tensors that the layout is checked against.
        note: what else one has to know, such as where weights without an id are.

    Examples:
        >>> from mmblocks import list_pretrained
        >>> (entry,) = list_pretrained("emu3_vq*")
        >>> entry.block, entry.layout, entry.block_class().__name__
        ('Emu3VQ', 'emu3', 'Emu3VQ')
    """

    name: str
    block: str
    layout: str
    id: str | None = None
    path: str = ""
    revision: str | None = None
    license: str | None = None
    code_license: str | None = None
    num_parameters: int | None = None
    paper: str | None = None
    source: str | None = None
    parity: str | None = None
    manifest: str | None = None
    note: str | None = None

    def block_class(self) -> type:
        """The class, which is imported for it."""
        from mmblocks.configurable import find  # here, since torch is not needed to list what there is

        return find(self.block)


def list_pretrained(pattern: str = "*") -> list[Pretrained]:
    """All known published components whose name, class or id fits a pattern such as ``"*vq*"``; case does not matter.

    Args:
        pattern: ``*`` stands for any characters, ``?`` for one.

    Returns:
        The entries, sorted by name.

    Examples:
        >>> from mmblocks import list_pretrained
        >>> [entry.name for entry in list_pretrained("emu3*vq*")]
        ['emu3_vq.baai']
    """
    wanted = pattern.lower()
    return [
        entry
        for entry in _entries().values()
        if any(fnmatchcase(text.lower(), wanted) for text in (entry.name, entry.block, entry.id) if text is not None)
    ]


def find(name: str) -> Pretrained | None:
    """The entry of that name."""
    return _entries().get(name)


@cache
def _entries() -> dict[str, Pretrained]:
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Pretrained(name=name, **rows[name]) for name in sorted(rows)}
