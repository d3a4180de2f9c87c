"""Where a Block comes from: what is loaded, and what the Block keeps of that, is saved with and reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from mmblocks.checkpoints import config
from mmblocks.configurable import Configurable

B = TypeVar("B", bound=Configurable)


@dataclass(frozen=True)
class Place(Generic[B]):
    """What to load, and where from.

    Attributes:
        cls: the class.
        path: the folder or file.
        root: what others may replace as a whole while it is read.
        source: what the user named, in short.
        revision: the commit, if it came from the Hub.
        layout: the name of the layout, where it is given.
        ignored: entries of a published config that are left out.
    """

    cls: type[B]
    path: Path
    root: Path
    source: str
    revision: str | None
    layout: str | None
    ignored: tuple[str, ...]


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
