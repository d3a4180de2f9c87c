"""Which implementation of an op runs: plain PyTorch, or a Triton kernel.

The choice is made in Python before the op, so that a compiler, autograd and export see ordinary PyTorch wherever no kernel runs.
"""

import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch

Impl = Literal["auto", "eager", "triton"]

ENVIRONMENT = "MMBLOCKS_OPS"
"""Names the implementation of all ops, where neither a call nor ``using`` does."""

OLDEST_TRITON = (3, 6)

MEASURED: frozenset[str] = frozenset()
"""Ops whose kernel is the faster one in a record of benchmarks/records: "auto" takes it for these alone."""

log = logging.getLogger(__name__)
_forced: list[Impl] = [os.environ.get(ENVIRONMENT, "auto")]  # type: ignore[list-item]
_why_not: dict[str, Callable[..., str]] = {}
_said: set[tuple[str, str]] = set()


class Choice(NamedTuple):
    """What would run, and why."""

    impl: Literal["eager", "triton"]
    reason: str


def kernel_of(op: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function of an op's arguments that says why its kernel cannot take them; "" if it can."""

    def register(why_not: Callable[..., str]) -> Callable[..., str]:
        _why_not[op] = why_not
        return why_not

    return register


@contextmanager
def using(impl: Impl) -> Iterator[None]:
    """Inside, all ops that are called with ``impl="auto"`` run as ``impl`` says.

    Raises:
        ValueError: an unknown implementation.
    """
    _check(impl, "impl")
    _forced.append(impl)
    try:
        yield
    finally:
        _forced.pop()


def which(op: str, *args: object, impl: Impl = "auto", **kwargs: object) -> Choice:
    """What a call of an op with these arguments would run.

    Raises:
        ValueError: an op without a kernel, or an unknown implementation.
        RuntimeError: the kernel was requested and cannot run; the reason is in the message.
    """
    if op not in _why_not:
        raise ValueError(f"op is {op!r}; accepted: {', '.join(sorted(_why_not))}")
    _check(impl, "impl")
    wanted = _forced[-1] if impl == "auto" else impl
    _check(wanted, ENVIRONMENT)
    if wanted == "eager":
        return Choice("eager", "asked for")
    obstacle = why_no_triton() or _why_not[op](*args, **kwargs)
    if wanted == "triton":
        if obstacle:
            raise RuntimeError(f"the Triton kernel of {op} cannot run: {obstacle}")
        return Choice("triton", "asked for")
    if obstacle:
        return Choice("eager", obstacle)
    if op not in MEASURED:
        return Choice("eager", "no record shows yet that the kernel is faster; ask for it with impl='triton'")
    return Choice("triton", "the faster one, by the records")


def chosen(op: str, impl: Impl, *args: object, **kwargs: object) -> bool:
    """Whether the kernel is to run; says once, at debug level, why it is not."""
    choice = which(op, *args, impl=impl, **kwargs)
    if not torch.compiler.is_compiling() and (op, choice.reason) not in _said:
        _said.add((op, choice.reason))
        log.debug("%s runs as %s: %s", op, *choice)
    return choice.impl == "triton"


def why_no_triton() -> str:
    """Why no Triton kernel can run here; "" if they can."""
    return _TRITON


def why_not_on(*tensors: torch.Tensor) -> str:
    """Why no kernel can take these tensors because of where they are; "" if it can. Interpreted kernels take tensors on a CPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    where = {tensor.device.type for tensor in tensors}
    return "" if where == {"cuda"} else f"tensors on {', '.join(sorted(where))}; it runs on cuda"


def _find_triton() -> str:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    numbers = tuple(int(part) for part in version.split(".")[:2])
    oldest = ".".join(map(str, OLDEST_TRITON))
    return "" if numbers >= OLDEST_TRITON else f"triton is {version}; it takes {oldest} or newer"


def _check(impl: str, name: str) -> None:
    if impl not in get_args(Impl):
        raise ValueError(f"{name} is {impl!r}; accepted: {', '.join(get_args(Impl))}")


_TRITON = _find_triton()
