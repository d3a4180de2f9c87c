"""Activations by name, and what transformers calls them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, relu, sigmoid, silu

from mmblocks.checkpoints.layouts.published_config import shown, stated, title

Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """Primer's activation."""
    return relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": squared_relu,
    "silu": silu,
}

_PUBLISHED = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    **{name: name for name in ("quick_gelu", "relu", "relu2")},
}
"""Names of transformers -> ours. It has several for GELU by its tanh formula."""


def activation_of(name: str) -> Activation:
    """The function of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[name]


class ActivationLayer(nn.Module):
    """The function of that name as a module; raises as ``activation_of``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = activation_of(name)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return self.function(x)


def published_activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """Our name of the activation that a config of transformers names.

    Args:
        config: the config.
        key: the entry's name.
        default: transformers' name of what an absent entry means.

    Raises:
        ValueError: another activation.
    """
    name = stated(config, key, default)
    if name not in _PUBLISHED:
        raise ValueError(f"{title(config, key)} is {shown(name)}; accepted: {', '.join(map(repr, _PUBLISHED))}")
    return _PUBLISHED[name]


def transformers_name(activation: str) -> str:
    """The way back."""
    return "gelu_pytorch_tanh" if activation == "gelu_tanh" else activation
