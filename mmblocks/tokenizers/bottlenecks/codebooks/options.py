"""Constructor arguments of vector-quantize-pytorch's classes, as a config.json beside their weights holds them.

The library has no file for them: ``to_upstream`` writes one, whose entries its constructor takes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import only

RESIDUAL = (
    "accept_image_fmap",
    "keep_num_codebooks_dim",
    "projection_has_bias",  # of the quantizers inside, which project nothing
    "rand_quantize_dropout_fixed_seed",  # of a forward pass, as num_kept is
)
"""What changes nothing in residual quantizers without codebooks."""


def given(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the arguments that a config holds."""
    return {name: value for name in names if (value := config.get(name)) is not None}


def check_plain(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Refuses arguments with other values than the only ones that are followed: name -> value.

    Raises:
        ValueError: names the argument, its value and what is accepted.
    """
    for name, value in plain.items():
        only(config, name, value)


def bits_of(config: Mapping[str, Any]) -> int | None:
    """How many bits number the codes of a quantizer without a codebook; None where no ``codebook_size`` is said.

    Raises:
        ValueError: a number of codes that is no power of two.
    """
    size = config.get("codebook_size")
    if size is not None and (size < 2 or size & (size - 1)):
        raise ValueError(f"codebook_size is {size}; accepted: powers of two")
    return None if size is None else size.bit_length() - 1


def temperature_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The temperature of the soft choices; the library is told its inverse, 100 by default, in a forward pass."""
    inverse = config.get("inv_temperature")
    return {} if inverse is None else {"temperature": 1 / inverse}


def published_temperature(temperature: float) -> dict[str, float]:
    """The way back of ``temperature_of``."""
    return {} if temperature == 0.01 else {"inv_temperature": 1 / temperature}
