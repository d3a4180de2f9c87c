"""Named, invertible changes of a tensor's shape between a published file and a Block.

A new one is an entry in ``transforms``. Both functions must also work on the meta device, where they tell the shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Transform(NamedTuple):
    """``forward`` takes a published tensor to ours, ``backward`` takes it back. Either raises ValueError where it cannot."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _transpose(tensor: Tensor) -> Tensor:
    if tensor.ndim != 2:
        raise ValueError(f"transpose takes a matrix, but got {tuple(tensor.shape)}")
    return tensor.T


def _squeeze(num_dims: int) -> Transform:
    """A convolution of kernel size one <-> a linear layer; ``num_dims`` is how many dimensions the kernel has."""

    def forward(tensor: Tensor) -> Tensor:
        if tensor.ndim != 2 + num_dims or tensor.shape[2:].numel() != 1:
            raise ValueError(f"expected a kernel of size one, but got {tuple(tensor.shape)}")
        return tensor.flatten(1)

    def backward(tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape, *[1] * num_dims)

    return Transform(forward, backward)


def _inverse(transform: Transform) -> Transform:
    return Transform(transform.backward, transform.forward)


def _squeeze_first(tensor: Tensor) -> Tensor:
    if tensor.ndim == 0 or tensor.shape[0] != 1:
        raise ValueError(f"expected a first dimension of one, but got {tuple(tensor.shape)}")
    return tensor[0]


def _unsqueeze_first(tensor: Tensor) -> Tensor:
    return tensor[None]


def _squeeze_first_two(tensor: Tensor) -> Tensor:
    return _squeeze_first(_squeeze_first(tensor))


def _unsqueeze_first_two(tensor: Tensor) -> Tensor:
    return tensor[None, None]


transforms: dict[str, Transform] = {
    "same": Transform(_same, _same),
    "transpose": Transform(_transpose, _transpose),
    "squeeze_first": Transform(_squeeze_first, _unsqueeze_first),
    "unsqueeze_first": Transform(_unsqueeze_first, _squeeze_first),
    "unsqueeze_first_two": Transform(_unsqueeze_first_two, _squeeze_first_two),
    "squeeze_1": _squeeze(1),
    "squeeze_1x1": _squeeze(2),
    "unsqueeze_1x1": _inverse(_squeeze(2)),
    "squeeze_1x1x1": _squeeze(3),
}
