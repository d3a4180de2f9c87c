"""Where a Block came from. It is reported when loading, kept by the Block, and saved with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmblocks.checkpoints import config


class Origin(NamedTuple):
    """The published checkpoint that a Block was first loaded from.

    Attributes:
        source: the Hub's id, or the name of a local folder or file.
        layout: the name of its layout.
        revision: the commit, where it came from the Hub.

    Examples:
        >>> from mmblocks.checkpoints import Origin
        >>> Origin("BAAI/Emu3-VisionTokenizer", layout="emu3").to_json()
        {'source': 'BAAI/Emu3-VisionTokenizer', 'layout': 'emu3'}
    """

    source: str
    layout: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = f" at {self.revision}" if self.revision else ""
        return f"{self.source}{revision} in the layout {self.layout!r}"

    def to_json(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def read(content: Mapping[str, Any]) -> Origin | None:
    """The origin that a config names; None where there is none.

    Raises:
        ValueError: it makes no sense.
    """
    found = content.get(config.ORIGIN)
    if found is None:
        return None
    known = isinstance(found, dict) and set(found) <= set(Origin._fields) and all(isinstance(v, str) for v in found.values())
    if not known or not {"source", "layout"} <= set(found):
        raise ValueError(f"{config.FILE}: {config.ORIGIN!r} is {found!r}; accepted: an object with 'source' and 'layout'")
    return Origin(**found)
