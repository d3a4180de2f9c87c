"""Reading the constructor arguments of a published class: nothing that changes the numbers is passed over in silence."""

from collections.abc import Collection, Mapping
from typing import Any


def published_options(
    config: Mapping[str, Any], *, ignored: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A copy to take arguments from.

    Args:
        config: argument name -> value.
        ignored: names that change nothing here, such as weights of losses or the place of the channels.
        defaults: values with which an argument changes nothing here.
    """
    harmless = defaults or {}
    return {
        name: value for name, value in config.items() if name not in ignored and not (name in harmless and value == harmless[name])
    }


def refuse_unknown(left: Mapping[str, Any], published: str) -> None:
    """Refuses what is left over, except what is switched off.

    Raises:
        ValueError: an argument that nothing here stands for.
    """
    unknown = {name: value for name, value in left.items() if value not in (None, False, 0)}
    if unknown:
        raise ValueError(f"{published} with {', '.join(f'{name}={value!r}' for name, value in unknown.items())} is not known here")
