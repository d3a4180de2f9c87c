"""Checks of the values in tensors, wherever looking at them costs nothing.

On a GPU a look would wait for all that was asked of it, inside a compiled graph it would break the graph: there, nothing is
checked, and a number out of range stops the program in the look-up itself.
"""

import torch
from torch import Tensor


def is_readable(values: Tensor) -> bool:
    """Whether looking costs nothing: on the CPU, outside compiled graphs."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def as_int64(name: str, values: Tensor) -> Tensor:
    """Integers of any dtype as int64, which every operation takes: uint16 and uint32 save space, but know few operations.

    Raises:
        TypeError: values that are no integers.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name}: dtype {values.dtype}; accepted: integers")
    return values.long()


def check_range(name: str, values: Tensor, stop: int, note: str = "") -> None:
    """Refuses other numbers than 0, 1, ..., ``stop - 1``.

    Args:
        name: of the argument, for the message.
        values: of any shape.
        stop: see above.
        note: said after what is accepted.

    Raises:
        TypeError: values that are no integers.
        ValueError: a number out of range.
    """
    values = as_int64(name, values)
    if is_readable(values) and values.numel():
        low, high = map(int, values.aminmax())
        if low < 0 or high >= stop:
            lie = "lie" if name.endswith("s") else "lies"
            raise ValueError(f"{name} {lie} in [{low}, {high}]; accepted: [0, {stop - 1}]{note}")


def check_shape(name: str, values: Tensor, *accepted: str | int) -> None:
    """Refuses another number of axes, and other sizes where one is told.

    Args:
        name: of the argument, for the message.
        values: of any dtype.
        accepted: one for each axis: the size it must have, or a letter where it may have any.

    Raises:
        ValueError: another shape.
    """
    sizes = zip(values.shape, accepted, strict=False)
    if values.ndim != len(accepted) or any(size != told for size, told in sizes if not isinstance(told, str)):
        have = "have" if name.endswith("s") else "has"
        raise ValueError(f"{name} {have} shape {tuple(values.shape)}; accepted: ({', '.join(map(str, accepted))})")


def check_finite(name: str, values: Tensor) -> None:
    """Refuses NaN and infinity.

    Raises:
        ValueError: a value that is not finite.
    """
    if is_readable(values) and not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity; accepted: finite values")
