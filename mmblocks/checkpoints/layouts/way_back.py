"""From a Block's arguments to the config of the authors: what such a config cannot say is refused."""

from mmblocks.checkpoints.layouts.published_config import shown
from mmblocks.checkpoints.layouts.rules import Arguments

__all__ = ["check_arguments"]


def check_arguments(arguments: Arguments, **accepted: object) -> None:
    """Refuses a Block that the authors' config has no words for.

    Args:
        arguments: the Block's.
        accepted: by name, what alone can be said.

    Raises:
        ValueError: an argument is something else.
    """
    for name, value in accepted.items():
        given = arguments[name]
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise ValueError(
                f"{name} is {shown(arguments[name])}; accepted in this layout: {value!r}, which its config cannot change"
            )
