"""Arguments that a published config has no entries for: they are written into it under their own names, and read again.

_OWN = {"image_size": 256}

def reader(config): return {"dim": config["hidden_size"], **own_entries.read(config, _OWN)}
def writer(arguments): return {"hidden_size": arguments["dim"], **own_entries.written(arguments, _OWN)}
"""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.rules import Arguments


def read(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of these names; the defaults where the config has no such entry, as no published file has."""
    return {name: as_tuples(config.get(name, default)) for name, default in defaults.items()}


def written(arguments: Arguments, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Entries for the arguments that are not as the defaults are."""
    return {name: arguments[name] for name, default in defaults.items() if arguments[name] != default}


def as_tuples(value: Any) -> Any:
    """Lists as Blocks record them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
