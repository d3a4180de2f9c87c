"""Filling places without values from files: everything is compared first, then read tensor by tensor."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmblocks.checkpoints.files import mapped
from mmblocks.checkpoints.files.stored import Stored
from mmblocks.checkpoints.layouts.difference import compare
from mmblocks.checkpoints.layouts.layout import converted_shapes
from mmblocks.checkpoints.layouts.rules import Source
from mmblocks.checkpoints.tensors import Slot


class Job(NamedTuple):
    """Places to fill from one folder.

    Attributes:
        unknown: tensors of the folder that have no place in any layout.
        check: raises ``ValueError`` if the folder is not what was written. Given True, it gives back the memory of what it has
            read.
        reads_all: whether ``check`` reads every tensor of the folder.
    """

    title: str
    slots: dict[str, Slot]
    sources: dict[str, Source]
    stored: Stored
    unknown: list[str]
    check: Callable[[bool], None] | None = None
    reads_all: bool = False


def compare_all(jobs: list[Job], given: set[int]) -> None:
    """Raises ``ValueError`` with every difference between places and files; reads only headers.

    ``given`` are the ids of the tensors that were handed in, which no file needs to hold.
    """
    present = {id(job.slots[key].tensor) for job in jobs for key in job.sources if key in job.slots}
    problems = []
    for job in jobs:
        # A tensor that has two names needs only one of them.
        expected = {
            key: tuple(slot.tensor.shape)
            for key, slot in job.slots.items()
            if key in job.sources or id(slot.tensor) not in present | given
        }
        unknown = {key: tuple(job.stored.meta[key].shape) for key in job.unknown}
        difference = compare(expected, converted_shapes(job.sources, job.stored.meta))
        difference = replace(difference, unexpected={**difference.unexpected, **unknown})
        if difference:
            problems.append(f"{job.title} does not match:\n{difference}")
    if problems:
        raise ValueError("\n".join(problems))
    for job in jobs:
        _compare_kinds(job)


def _compare_kinds(job: Job) -> None:
    """Casting is for floating-point tensors among themselves: 1.5 is no index."""
    for key, source in job.sources.items():
        found, expected = source.read(job.stored.meta).dtype, job.slots[key].tensor.dtype
        if found.is_floating_point != expected.is_floating_point or found.is_complex != expected.is_complex:
            raise ValueError(f"{job.title}: {key} holds {found}, but {expected} is expected")


def fill(
    jobs: list[Job], given: set[int], dtype: torch.dtype | None, destination: Callable[[Tensor], torch.device | None]
) -> dict[int, Callable[[], Tensor]]:
    """Puts values into all places but the ``given`` ones. A tensor that two places share is read once, and stays shared.

    Args:
        jobs: what to fill.
        given: ids of tensors that have values.
        dtype: cast floating-point tensors.
        destination: the device for the tensor in a place; None leaves the place as it is.

    Returns:
        For each place that was left, under the id of the tensor in it: what gives its values, on the CPU.
    """
    # Keyed by the tensor without values, which stays alive, and its id unique, until all places are filled.
    filled: dict[int, Tensor] = {}
    left: dict[int, Callable[[], Tensor]] = {}
    places = [(job, key, slot, slot.tensor) for job in jobs for key, slot in job.slots.items() if id(slot.tensor) not in given]
    for job, key, _, placeholder in places:
        if key not in job.sources:
            continue
        device = destination(placeholder)
        read = partial(_read, job, key, dtype, device or torch.device("cpu"), forgetting=device is not None)
        known = left[id(placeholder)]() if id(placeholder) in left else filled.get(id(placeholder))
        if known is not None:
            if not torch.equal(known, read()):
                raise ValueError(f"{job.title}: {key} shares its tensor with another name, but the files hold two different ones")
        elif device is None:
            left[id(placeholder)] = read
        else:
            is_parameter = isinstance(placeholder, nn.Parameter)
            filled[id(placeholder)] = nn.Parameter(read(), placeholder.requires_grad) if is_parameter else read()
    for _, _, slot, placeholder in places:
        if id(placeholder) in filled:
            slot.put(filled[id(placeholder)])
    for job in jobs:
        if job.check is not None:
            job.check(dtype is not None)
    return left


def _read(job: Job, key: str, dtype: torch.dtype | None, device: torch.device, forgetting: bool) -> Tensor:
    """The values for a place. ``forgetting`` gives back the memory of what was read, where it is not the very result."""
    source = job.sources[key]
    raw = {name: job.stored[name] for name in source.keys}
    tensor = placed(source.read(raw), dtype, device, forgetting)
    for one in raw.values():
        if forgetting and one.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            mapped.forget(one)
    return tensor


def placed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device, forgetting: bool = False) -> Tensor:
    """On its device, in its dtype, and without the rest of a larger tensor it may be a piece of."""
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()
    if dtype is not None and tensor.is_floating_point():
        tensor = mapped.cast(tensor, dtype) if forgetting else tensor.to(dtype)
    return tensor.to(device).contiguous()
