"""Bottlenecks outside autocast: small differences decide between two codes, and half precision does not hold them."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(method: Callable[P, R]) -> Callable[P, R]:
    """Wraps a method of a module so that autocast has no effect inside, as it has none on softmax or losses.

    Under autocast, floating point arguments are cast to the dtype of the module's parameters (float32 where it has none), which
    is the dtype of what comes back. Elsewhere nothing changes.
    """

    @wraps(method)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        module = cast("nn.Module", args[0])
        device = next((value.device.type for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return method(*args, **kwargs)
        dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
        call: Callable[..., R] = method
        with torch.autocast(device, enabled=False):
            named = {name: _cast(value, dtype) for name, value in kwargs.items()}
            return call(module, *(_cast(value, dtype) for value in args[1:]), **named)

    # Code of its own: torch.compile counts how often it compiled one piece of code, and gives up after a few modules.
    code = outside.__code__.replace(co_name=method.__name__, co_qualname=method.__qualname__)  # type: ignore[attr-defined]
    outside.__code__ = code  # type: ignore[attr-defined]
    return outside


def _cast(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
