"""What losses over a linear map's logits share: chunks of rows, and gradients that are gathered chunk by chunk.

Shapes: N rows, D width, V vocabulary; a chunk is R rows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmblocks.ops.arithmetic import lacks_arithmetic
from mmblocks.support.checks import is_readable

CPU_CHUNK_BYTES = 2**26
"""Of float32 logits at a time. Fewer rows read the weight too often; more gain nothing."""

GPU_CHUNK_BYTES = 2**30
"""A chunk of too few rows leaves a GPU's matrix units waiting for the weight, which each chunk reads again."""

PIECE_BYTES = 2**22
"""Of the weight in float32, where half precision is emulated."""


class LinearGradients:
    """Gradients of hidden, weight and bias: what many rows share is summed in float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.inputs = hidden, weight
        self.bias_dtype = None if bias is None else bias.dtype
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=exact(weight.dtype)) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=exact(bias.dtype)) if bias is not None and wanted[2] else None

    def add(self, rows: slice, pull: Tensor) -> None:
        """Adds what a chunk's logits pull (R, V)."""
        hidden, weight = self.inputs
        if self.bias is not None:
            self.bias += pull.sum(dim=0)
        if not lacks_arithmetic(weight):
            pull = pull.to(weight.dtype)
        if self.hidden is not None:
            parts = (pull[:, columns] @ piece for columns, piece in _pieces(weight))
            total = next(parts)
            for part in parts:
                total += part
            self.hidden[rows] = total
        if self.weight is not None:
            mine = hidden[rows].to(pull.dtype)
            if self.weight.dtype == pull.dtype:
                self.weight.addmm_(pull.T, mine)
            else:
                self.weight += pull.T @ mine

    def cast(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of the inputs."""
        weight = None if self.weight is None else self.weight.to(self.inputs[1].dtype)
        bias = None if self.bias is None else self.bias.to(self.bias_dtype)
        return self.hidden, weight, bias


def multiplied(parts: Sequence[Tensor | None], one: Tensor) -> list[Tensor | None]:
    """Gradients times the number that comes in. Where that is 1, which is looked at on a CPU alone, no copy is made."""
    if is_readable(one) and bool(one == 1):
        return list(parts)
    return [None if part is None else part * one.to(part.dtype) for part in parts]


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(R, V) in float32, or float64, of a chunk; rounded to the dtype of the inputs once."""
    if not lacks_arithmetic(weight):
        return (hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)).to(exact(hidden.dtype))
    logits = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
    hidden, offsets = hidden.float(), hidden.new_zeros(len(weight)) if bias is None else bias
    for columns, piece in _pieces(weight):
        logits[:, columns] = torch.addmm(offsets[columns].float(), hidden, piece.T).to(weight.dtype)
    return logits


def _pieces(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight as it is multiplied: as a whole, or some rows at a time in float32, where its own products are emulated."""
    if not lacks_arithmetic(weight):
        yield slice(None), weight
        return
    for rows in chunks(len(weight), max(1, PIECE_BYTES // (4 * weight.shape[1]))):
        yield rows, weight[rows].float()


def rows_a_chunk(hidden: Tensor, num_ids: int, chunk_bytes: int | None) -> int:
    """How many rows' logits fit into the memory; into what suits the device if None."""
    chunk_bytes = chunk_bytes or (CPU_CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES)
    return max(1, chunk_bytes // (4 * num_ids))


def chunks(num_rows: int, size: int) -> list[slice]:
    """All rows, ``size`` at a time."""
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def exact(dtype: torch.dtype) -> torch.dtype:
    """What is summed in: float32, or float64 for those who ask for it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_map(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    """Raises ``ValueError`` for shapes or dtypes that do not go together."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(weight):
        shapes = f"hidden has shape {tuple(hidden.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes}; accepted: (N, D) and (V, D), V at least 1")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}; accepted: one floating dtype")
    check_per_row("target", target, hidden)


def check_per_row(name: str, values: Tensor, hidden: Tensor) -> None:
    """Raises ``ValueError`` where there is not one value for each row."""
    if values.shape != hidden.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; accepted: ({len(hidden)},), one for each row")


def check_ids(target: Tensor, counts: Tensor, first: int, stop: int) -> None:
    """Raises ``ValueError`` for an id out of range in a row that counts.

    On a CPU alone: reading values would wait for a GPU, and break a compiled graph.
    """
    if not is_readable(target):
        return
    wrong = target[counts & ((target < first) | (target >= stop))]
    if len(wrong):
        raise ValueError(f"target holds {int(wrong[0])}; accepted: {first} to {stop - 1}")
