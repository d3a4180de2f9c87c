"""A small network that is called many times in a row, recorded once as a CUDA graph and replayed.

A denoising head calls its network once per step, and each call launches hundreds of kernels on a few rows: the launches take longer
than the kernels. Recorded, a call is one launch.

    with replaying():
        tokens = head.sample(hidden)

Recordings are made once per module, shapes and dtypes, and kept as long as the module. They have to be asked for: no record shows
yet what they bring.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ENVIRONMENT = "MMBLOCKS_CUDA_GRAPHS"
"""1 asks for recordings where ``replaying`` does not say."""

CAPACITY = 128
"""Recordings that are kept of one module; the one that was not used for longest is given up first. MAR asks for 64 numbers of rows
per image."""

WARM_UPS = 2
"""Calls before the recording, in which libraries find their memory and choose their kernels."""

Pool = tuple[int, int]
"""What torch calls memory that graphs share by."""

log = logging.getLogger(__name__)
_asked: list[bool] = [os.environ.get(ENVIRONMENT) == "1"]
_recorded: WeakKeyDictionary[nn.Module, "_Recordings"] = WeakKeyDictionary()
_said: set[tuple[str, str]] = set()


class Way(NamedTuple):
    """How a call would run, and why."""

    way: Literal["called", "replayed"]
    reason: str


@contextmanager
def replaying(wanted: bool = True) -> Iterator[None]:
    """Inside, whoever calls a network many times in a row records it, or does not."""
    _asked.append(wanted)
    try:
        yield
    finally:
        _asked.pop()


def repeated(module: nn.Module) -> Callable[..., Tensor]:
    """The module, to be called many times with tensors of the same shapes; it gives one tensor.

    Where ``which`` says so, calls are replayed, on one stream at a time; results are the caller's own. Weights may be changed in
    place between calls; where they lie elsewhere since, the module is recorded anew. That is looked at here, not in each call.
    """
    if not _asked[-1] or torch.compiler.is_compiling():
        return module
    recordings = _recordings_of(module)

    def call(*inputs: Tensor) -> Tensor:
        reason = _why_not(inputs)
        _say(type(module).__name__, reason)
        found: Tensor = module(*inputs) if reason else recordings(module, inputs)
        return found

    return call


def which(module: nn.Module, *inputs: Tensor) -> Way:
    """How a call of ``repeated(module)`` would run."""
    reason = _why_not(inputs)
    return Way("called", reason) if reason else Way("replayed", "asked for")


class Recording:
    """What a function does with buffers of its own, recorded once.

    Args:
        function: of tensors on one CUDA device; it gives one tensor and asks nothing of the host that depends on values.
        inputs: of the shapes and dtypes that all further inputs have.
        pool: memory that several recordings share, since only one of them runs at a time.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Pool) -> None:
        self.buffers = [torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value) for value in inputs]
        self.replay, self.output = capture(partial(function, *self.buffers), inputs[0].device, pool)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """What the function gives for these; nothing waits for the device."""
        for buffer, value in zip(self.buffers, inputs, strict=True):
            buffer.copy_(value)
        self.replay()
        return self.output.clone()


def capture(function: Callable[[], Tensor], device: torch.device, pool: Pool) -> tuple[Callable[[], None], Tensor]:
    """A way to launch again what the function launches, and the tensor that each launch writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]  # torch's own type has no public name
            output = function()
    return graph.replay, output


def new_pool() -> Pool:
    """Memory for the recordings of one module."""
    return torch.cuda.graph_pool_handle()


class _Recordings:
    """All recordings of one module, for as long as its weights lie where they lay."""

    def __init__(self, places: tuple[int, ...]) -> None:
        self.places = places
        self.pool: Pool | None = None
        self.found: OrderedDict[Hashable, Recording] = OrderedDict()

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        device = inputs[0].device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (*((value.shape, value.dtype) for value in inputs), inputs[0].device, half, module.training)
        if key not in self.found:
            if self.pool is None:
                self.pool = new_pool()
            # What inference mode makes cannot be written to outside it.
            with torch.inference_mode(False), torch.no_grad():
                self.found[key] = Recording(module, inputs, self.pool)
            if len(self.found) > CAPACITY:
                self.found.popitem(last=False)
        self.found.move_to_end(key)
        return self.found[key](inputs)


def _recordings_of(module: nn.Module) -> _Recordings:
    places = tuple(value.data_ptr() for value in _weights(module))
    known = _recorded.get(module)
    if known is None or known.places != places:
        known = _recorded[module] = _Recordings(places)
    return known


def _weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _why_not(inputs: tuple[Tensor, ...]) -> str:
    if not _asked[-1]:
        return f"no recordings were requested; request them with replaying() or {ENVIRONMENT}=1"
    if torch.compiler.is_compiling():
        return "torch.compile makes graphs of its own"
    if torch.is_grad_enabled():
        return "gradients are recorded; a replay has none"
    return _why_not_on(inputs)


def _why_not_on(inputs: tuple[Tensor, ...]) -> str:
    devices = {value.device for value in inputs}
    if len(devices) != 1 or inputs[0].device.type != "cuda":
        return f"tensors on {', '.join(sorted(map(str, devices)))}; it takes one cuda device"
    return "a graph is being recorded already" if torch.cuda.is_current_stream_capturing() else ""


def _say(name: str, reason: str) -> None:
    """Once for each reason, at debug level."""
    if (name, reason) not in _said:
        _said.add((name, reason))
        log.debug("%s is %s", name, f"called: {reason}" if reason else "replayed")
