"""What codebooks that move without gradients learn from: the features of all processes, so that codes stay the same in each.

A module whose training talks so says ``learns_together = True``: what holds it can refuse features before it begins.

Without a process group, or with a single process in it, these functions give their input back. With several, all of them have to
call, with as many features as each has: none at all is fine.

Shapes: N features of this process, M drawn ones, D their width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed


def several_processes() -> bool:
    """Whether there are others to agree with."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_of_all(*tensors: Tensor) -> None:
    """Replaces each by its sum over the processes, in place."""
    if several_processes():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def from_first(tensor: Tensor) -> Tensor:
    """What the first process has: for draws, which must be the same everywhere. Written in place."""
    if several_processes():
        distributed.broadcast(tensor, 0)
    return tensor


def nan_if_any_is(features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The features or, with several processes, one number, which is NaN if a feature of any of them is NaN or infinite."""
    if not several_processes():
        return features
    num_not_finite = (~features.isfinite()).sum()
    sum_of_all(num_not_finite)
    return torch.where(num_not_finite > 0, torch.nan, 0.0)


def gather_equal(tensor: Tensor) -> list[Tensor]:
    """A tensor of each process, all of one shape."""
    if not several_processes():
        return [tensor]
    every = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, tensor.contiguous())
    return every


def num_of_each(features: Float[Tensor, "N D"]) -> list[int]:
    """How many features each process has."""
    if not several_processes():
        return [len(features)]
    return torch.cat(gather_equal(torch.tensor([len(features)], device=features.device))).tolist()


def rows_of_all(features: Float[Tensor, "N D"], places: Int[Tensor, " M"], nums: list[int]) -> Float[Tensor, "M D"]:
    """Features by their place among those of all processes, process after process.

    Args:
        features: of this process.
        places: the same in all processes.
        nums: see ``num_of_each``.
    """
    if not several_processes():
        return features[places]
    own = places - sum(nums[: distributed.get_rank()])
    rows = features.new_zeros(len(places), features.shape[-1])
    mine = (own >= 0) & (own < len(features))
    rows[mine] = features[own[mine]]
    distributed.all_reduce(rows)  # every row comes from one process; the others add zero
    return rows
