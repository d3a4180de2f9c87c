"""A trunk with more weights out of a plain decoder: the empty trunk, and which weight comes from where."""

from collections.abc import Sequence
from typing import Any

import torch

from mmblocks.configurable import parameters
from mmblocks.trunks.decoder import Decoder


def unfilled(cls: type[Any], decoder: Decoder, **options: object) -> Any:  # a ``cls``, whichever it is
    """A trunk of the decoder's sizes, without values.

    Raises:
        TypeError: a decoder of another class, whose layers may compute something else.
        ValueError: a decoder with options that ``cls`` does not have.
    """
    if type(decoder) is not Decoder:
        raise TypeError(f"decoder is a {type(decoder).__name__}; accepted: a plain Decoder")
    arguments, known, plain = decoder.config, parameters(cls), parameters(Decoder)
    unknown = {name: value for name, value in arguments.items() if name not in known and value != plain[name].default}
    if unknown:
        raise ValueError(f"decoder has {unknown}, which a {cls.__name__} cannot have")
    with torch.device("meta"):
        return cls(**({name: value for name, value in arguments.items() if name in known} | options))


def without_expert(name: str, experts: Sequence[str]) -> str:
    """What a plain decoder calls a weight: ``mlp.up.vision.weight`` is its ``mlp.up.weight``."""
    *path, last, tensor = name.split(".")
    return ".".join([*path, tensor]) if last in experts else name
