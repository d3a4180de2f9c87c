"""Tensors that are mapped from files: what was read of them counts as memory of the process until it is given back."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 2**20
"""Elements that are looked at before their memory is given back."""

_DONTNEED = 4
"""MADV_DONTNEED of Linux."""

_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None


class Entry(NamedTuple):
    """A tensor in a file: on the meta device, which tells its shape and dtype, and how to read it onto the CPU."""

    meta: Tensor
    read: Callable[[], Tensor]


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A contiguous tensor's elements, some at a time."""
    yield from tensor.reshape(-1).split(PIECE)


def forget(tensor: Tensor) -> None:
    """Gives back the memory of a tensor on the CPU, where the system can; if it is looked at again, the file is read again.

    Only for tensors that nobody has changed, and that are mapped from a file or not used any more.
    """
    if _LIBRARY is None or not tensor.numel():
        return
    # Pages at either end may hold the neighbours' bytes.
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        _LIBRARY.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, which is ``forget``-able, in another dtype; never both of them in memory as a whole."""
    if tensor.dtype == dtype or tensor.is_meta or not tensor.is_contiguous():
        return tensor.to(dtype)
    result = torch.empty(tensor.shape, dtype=dtype)
    for source, target in zip(pieces(tensor), pieces(result), strict=True):
        target.copy_(source)
        forget(source)
    return result
