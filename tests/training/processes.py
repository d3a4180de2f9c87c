"""Losses and codebooks in several processes, each of which really runs."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, multiprocessing


def in_processes(loss: Callable[..., Tensor], *inputs: Tensor, num_processes: int = 2) -> tuple[Tensor, list[Tensor]]:
    """The mean over the processes of a loss and of its gradients to the inputs, which each process has a share of.

    Inputs of one number are the same in all of them. ``loss`` is a function of a module, for another process imports it.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.save([value.detach() for value in inputs], folder / "in.pt")
        multiprocessing.spawn(_one_process, (num_processes, folder, loss), nprocs=num_processes)
        results = [torch.load(folder / f"{rank}.pt") for rank in range(num_processes)]
    losses, gradients = zip(*results, strict=True)
    together = [
        torch.stack(parts).mean(0) if not parts[0].ndim else torch.cat(parts) / num_processes
        for parts in zip(*gradients, strict=True)
    ]
    return torch.stack(losses).mean(), together


def results_of_processes(work: Callable[[int], Any], num_processes: int = 2) -> list[Any]:
    """What each process returns for its rank: anything that pickle takes. ``work`` is a function of a module."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        multiprocessing.spawn(_work_in_process, (num_processes, folder, work), nprocs=num_processes)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(num_processes)]


def join(rank: int, num_processes: int, folder: Path) -> None:
    """A process becomes one of a group; what it does to be warned of is an error, as it is in the tests' own process."""
    warnings.filterwarnings("error", module=r"(mmblocks|tests)\b")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=num_processes)


def leave() -> NoReturn:
    """Ends a process of a group: together with the others, since who leaves while they still talk may be aborted, and without
    the interpreter's own end, which a thread of the group may outlive."""
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)


def _work_in_process(rank: int, num_processes: int, folder: Path, work: Callable[[int], Any]) -> None:
    join(rank, num_processes, folder)
    torch.save(work(rank), folder / f"{rank}.pt")
    leave()


def _one_process(rank: int, num_processes: int, folder: Path, loss: Callable[..., Tensor]) -> None:
    values = torch.load(folder / "in.pt")
    own = [(value.chunk(num_processes)[rank] if value.ndim else value).clone().requires_grad_() for value in values]
    join(rank, num_processes, folder)
    value = loss(*own)
    value.backward()
    torch.save((value.detach(), [part.grad for part in own]), folder / f"{rank}.pt")
    leave()
