"""Tables that older language models wrote into their files, although they follow from the config."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived
from mmblocks.checkpoints.layouts.rules import Arguments


def inverse_frequencies(name: str) -> Derived:
    """The angles of the first position, as transformers wrote them up to its version 4.31: one for each pair of channels.

    Args:
        name: the tensor's name, or a pattern.
    """
    return Derived(name, frequencies_differ)


def frequencies_differ(table: Tensor, arguments: Arguments) -> float:
    """How far angles are from those of ``head_dim`` and ``rope_theta``.

    Relative, so that slow pairs count like fast ones, as far as the dtype tells them apart.

    Raises:
        ValueError: another shape.
    """
    head_dim, theta = _head_and_base(arguments)
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    expected = float(theta) ** (-2 * pair / head_dim)
    if table.shape != expected.shape:
        raise ValueError(f"it is {tuple(table.shape)}; expected {tuple(expected.shape)}")
    return float(((table.double() - expected) / expected.clamp(min=torch.finfo(table.dtype).tiny)).abs().max())


def _head_and_base(arguments: Arguments) -> tuple[int, float]:
    """The width of a head and the base of its angles, of described layers or of the shorthand's arguments."""
    layers = arguments.get("layers")
    if layers is None:
        head_dim = arguments.get("head_dim") or arguments["dim"] // arguments["num_heads"]
        return head_dim, arguments.get("rope_theta", 10000.0)
    mixer = (next(iter(layers.values())) if isinstance(layers, Mapping) else layers).mixer
    return mixer.width(arguments["dim"]), mixer.rotary.theta
