"""A convolution of maps whose half precision costs nothing where the hardware has none."""

import torch
from torch import Tensor
from torch.nn import functional

from mmblocks.ops.arithmetic import lacks_arithmetic
from mmblocks.ops.conv2d.winograd import conv3x3_winograd

__all__ = ["conv2d"]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
    """``torch.nn.functional.conv2d``, except for half precision on a CPU that has no such arithmetic.

    PyTorch emulates it there, which takes from 8 times (channels last) to 300 times as long as float32. Here the values are float32
    from the first product to the last sum, and rounded once: an error no larger than that of true half precision. 3x3 convolutions
    of large maps take a quarter of the products besides (``conv3x3_winograd``), unless a gradient is needed.

    Args:
        x: (B, C, H, W).
        weight: (C2, C, h, w), of x's dtype.
        bias: (C2,).
        stride: along both sides.
        padding: zeros above and below, and left and right.

    Returns:
        (B, C2, H2, W2), of x's dtype.
    """
    if not lacks_arithmetic(x):
        return functional.conv2d(x, weight, bias, stride, padding)
    if _winograd_wins(x, weight, stride, padding) and not _needs_gradient(x, weight, bias):
        return conv3x3_winograd(x, weight, bias)
    wide = functional.conv2d(x.float(), weight.float(), None if bias is None else bias.float(), stride, padding)
    return wide.to(x.dtype)


def _winograd_wins(x: Tensor, weight: Tensor, stride: int, padding: int | tuple[int, int]) -> bool:
    if weight.shape[2:] != (3, 3) or (stride, padding) != (1, 1) or torch.compiler.is_compiling():
        return False
    narrow, wide = sorted(weight.shape[:2])
    # With fewer pixels than channels, the weights cost more on their way than is won at the pixels.
    return narrow >= 64 and x.shape[2] * x.shape[3] >= wide


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
