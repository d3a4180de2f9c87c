"""A tensor in a file: what it looks like, and how to read it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Entry(NamedTuple):
    """A tensor in a file: on the meta device, which tells its shape and dtype, and how to read it onto the CPU."""

    meta: Tensor
    read: Callable[[], Tensor]
