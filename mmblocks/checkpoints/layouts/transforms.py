"""Named, invertible changes of a tensor's shape between a published file and a Block.

A new one is an entry in ``transforms``. Both functions must also work on the meta device, where they tell the shapes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
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


def _reordered(*order: int) -> Transform:
    """Pieces of equal size along the first dimension: ours are theirs in this order."""

    def take(tensor: Tensor, pieces: Sequence[int]) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] % len(order):
            raise ValueError(f"expected a first dimension of {len(order)} equal pieces, but got {tuple(tensor.shape)}")
        cut = tensor.unflatten(0, (len(order), -1))
        return torch.cat([cut[piece] for piece in pieces])

    back = sorted(range(len(order)), key=order.__getitem__)
    return Transform(lambda tensor: take(tensor, order), lambda tensor: take(tensor, back))


def _after(first: Transform, second: Transform) -> Transform:
    return Transform(lambda tensor: second.forward(first.forward(tensor)), lambda tensor: first.backward(second.backward(tensor)))


def _kernel(tensor: Tensor) -> Tensor:
    """A linear map of square RGB patches, row by row with channels last, as the convolution that it is."""
    side = math.isqrt(tensor.shape[-1] // 3)
    if tensor.ndim != 2 or tensor.shape[1] != 3 * side * side:
        raise ValueError(f"expected a map of square patches of three colours, but got {tuple(tensor.shape)}")
    return tensor.unflatten(1, (side, side, 3)).movedim(-1, 1)


def _patch_map(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).flatten(1)


_BY_BRANCH = _reordered(4, 2, 0, 5, 3, 1)
"""Both gates, scales, shifts of a layer's branches -> shift, scale and gate of one, then of the other."""


transforms: dict[str, Transform] = {
    "same": Transform(_same, _same),
    "transpose": Transform(_transpose, _transpose),
    "squeeze_first": Transform(_squeeze_first, _unsqueeze_first),
    "unsqueeze_first": Transform(_unsqueeze_first, _squeeze_first),
    "unsqueeze_first_two": Transform(_unsqueeze_first_two, _squeeze_first_two),
    "rgb_patches_to_kernel": Transform(_kernel, _patch_map),
    "swap_halves": _reordered(1, 0),
    "by_branch": _BY_BRANCH,
    "squeeze_first_by_branch": _after(Transform(_squeeze_first, _unsqueeze_first), _BY_BRANCH),
    "squeeze_first_two_by_branch": _after(Transform(_squeeze_first_two, _unsqueeze_first_two), _BY_BRANCH),
    "squeeze_1": _squeeze(1),
    "squeeze_1x1": _squeeze(2),
    "unsqueeze_1x1": _inverse(_squeeze(2)),
    "squeeze_1x1x1": _squeeze(3),
}
