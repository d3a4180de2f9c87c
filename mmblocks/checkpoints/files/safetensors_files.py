"""Safetensors files, told from their headers. The library checks offsets and sizes; what it lets pass is checked here."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmblocks.checkpoints.files.mapped import Entry

LARGEST_HEADER = 8 * 2**20
"""Bytes; a thousand tensors take about a hundred thousand."""

MOST_ELEMENTS = 2**44
"""No tensor has as many, also where another dimension is zero."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def open_safetensors(file: Path) -> dict[str, Entry]:
    """The tensors of a file, mapped into memory: nothing but the header is read.

    Raises:
        ValueError: the file is broken, or its header claims what cannot be.
    """
    _check_header(file)
    try:
        reader = safe_open(file, framework="pt", device="cpu")
        slices = {key: reader.get_slice(key) for key in reader.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no valid safetensors file: {error}") from error
    entries = {}
    for key, header in slices.items():
        meta = meta_tensor(f"{file}: {key}", header.get_shape(), header.get_dtype())
        entries[key] = Entry(meta, partial(reader.get_tensor, key))
    return entries


def meta_tensor(title: str, shape: object, dtype: object) -> torch.Tensor:
    """A tensor as a header describes it, without values.

    Raises:
        ValueError: an unknown dtype, or a shape that cannot be.
    """
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{title} has the unknown dtype {dtype}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{title} has the impossible shape {shape!r:.200}")
    if math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
        raise ValueError(f"{title} has the impossible shape {tuple(shape)}")
    return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")


def _check_header(file: Path) -> None:
    """Refuses a header larger than any has reason to be, and one that describes a tensor twice."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"{file} is no valid safetensors file: its header claims {size} bytes, more than {LARGEST_HEADER}")
        header = content.read(size)
    try:
        json.loads(header, object_pairs_hook=_once)
    except _TwiceError as twice:
        raise ValueError(f"{file} is no valid safetensors file: {twice.args[0]!r} is described twice") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid safetensors file: its header is not JSON: {error}") from error


class _TwiceError(Exception):
    """A name that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Looks at an object and forgets it."""
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _TwiceError(name)
        seen.add(name)
