"""Ways to the same numbers, side by side: times, memory, and by how much the results differ.

All sides run in one process, turn by turn, so that whatever else the machine does hits each of them; a ratio is the median
over the turns, beside the least and the greatest. The processor's own time is given beside the clock, since it says more where
other programs run too. Peak memory comes from a fresh process for each side.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

Step = Callable[[], Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What no way to the same numbers can go below.

    Attributes:
        flops: of its matrix products; 0 where it has none.
        least_bytes: its inputs read once and its results written once.
        dtype: of the products.
    """

    flops: float
    least_bytes: float
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Attributes:
        title: what all sides compute.
        sides: name -> a function that prepares everything and returns the step to be timed. The first is ours. One side
            alone runs once only, in the process that measures its memory.
        difference: says by what the results of one step differ; raises SystemExit where that is too much.
        target: how many times as fast as each other side the first should be, if that was decided.
        memory: whether the peak memory of a first step is measured too, in a fresh process for each side.
        work: from which a floor of the time follows, if that was counted.
    """

    title: str
    sides: Mapping[str, Callable[[], Step]]
    difference: Callable[[], str]
    target: float | None = None
    memory: bool = True
    work: Work | None = None


def check(holds: bool, message: str) -> None:
    """Figures of two computations that differ are worth nothing."""
    if not holds:
        raise SystemExit(message)


def peak_memory(device: str) -> int:
    """The most that this process has held so far, in bytes; on CUDA, what tensors took."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes, on Linux, what the parent once held
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def time_of(step: Step, device: str) -> tuple[float, float]:
    """Seconds of one step: by the clock, and of all threads of this process together."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


@cache
def ceilings(device: str, dtype: torch.dtype) -> Figures:
    """What this device does at best, in this run: bytes copied and floating-point operations of a matrix product, in a second."""
    numbers, side = (2**28, 8192) if device == "cuda" else (2**24, 512)
    source, square = torch.ones(numbers, device=device), torch.ones(side, side, dtype=dtype, device=device)
    target, product = torch.empty_like(source), torch.empty_like(square)
    copying, multiplying = (
        min(time_of(step, device)[0] for _ in range(10))
        for step in (partial(target.copy_, source), partial(torch.mm, square, square.T, out=product))
    )
    return {"bytes_per_second": 2 * source.nbytes / copying, "flops_per_second": 2 * side**3 / multiplying}


def floor_of(work: Work, device: str) -> Figures:
    """Seconds below which nothing can go: products and memory each at their best, one beside the other."""
    best = ceilings(device, work.dtype)
    seconds = max(work.flops / best["flops_per_second"], work.least_bytes / best["bytes_per_second"])
    return {"flops": work.flops, "least_bytes": work.least_bytes, **best, "floor_seconds": seconds}


def measure(comparison: Comparison, options: argparse.Namespace) -> Figures:
    """Times of all sides, and by what their results differ."""
    difference = comparison.difference()
    if len(comparison.sides) == 1:
        return {"title": comparison.title, "difference": difference}
    steps = {side: prepare() for side, prepare in comparison.sides.items()}
    for step in steps.values():
        step()  # the first call finds memory that is not there yet, and compiles
    turns = [{side: time_of(step, options.device) for side, step in steps.items()} for _ in range(options.repeats)]
    ours, *others = steps
    figures: Figures = {"title": comparison.title, "difference": difference, "target": comparison.target}
    if comparison.work:
        figures |= floor_of(comparison.work, options.device)
    for number, clock in enumerate(("wall", "cpu") if options.device == "cpu" else ("wall",)):
        figures[f"{clock}_seconds"] = {side: median(turn[side][number] for turn in turns) for side in steps}
        ratios = {other: [turn[other][number] / turn[ours][number] for turn in turns] for other in others}
        figures[f"{clock}_ratio"] = {
            other: {"median": median(found), "min": min(found), "max": max(found)} for other, found in ratios.items()
        }
    return figures


def first_step(script: str, name: str, side: str, options: argparse.Namespace) -> Figures:
    """What a first step takes, in a fresh process: seconds, and bytes above what was held before."""
    command = [sys.executable, "-m", script, name, "--memory-of", side, "--device", options.device]
    command += ["--threads", str(options.threads)]
    worker = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(worker.stdout.splitlines()[-1])


def device_name(device: str) -> str:
    """The GPU, or the processor and how many cores it has here."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


def commit() -> str:
    """Of this checkout, with a plus sign where files were changed since; empty outside one."""
    if not shutil.which("git"):
        return ""
    git = ["git", "-C", str(Path(__file__).parent)]
    found = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return found.stdout.strip() + "+" * bool(changed.stdout.strip())


def about_this_run(options: argparse.Namespace) -> Figures:
    """What figures depend on."""
    return {
        "device": device_name(options.device),
        "commit": commit(),
        "threads": options.threads,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def described(figures: Figures) -> str:
    """One comparison for people to read."""
    lines = [figures["title"]]
    for clock in ("wall", "cpu"):
        seconds = figures.get(f"{clock}_seconds", {})
        for other, ratio in figures.get(f"{clock}_ratio", {}).items():
            ours = next(iter(seconds))
            spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
            times = f"{seconds[ours]:.4f} s and {seconds[other]:.4f} s"
            lines.append(f"  {clock}: {ratio['median']:.2f} times as fast as {other} (from {spread}): {times}")
    if "floor_seconds" in figures:
        reached = [f"{side} {figures['floor_seconds'] / seconds:.0%}" for side, seconds in figures["wall_seconds"].items()]
        lines.append(f"  of the best that the device could do ({figures['floor_seconds']:.4f} s): {', '.join(reached)}")
    for side, step in figures.get("first_step", {}).items():
        extra, peak = step["extra_bytes"] / 2**20, step["peak_bytes"] / 2**20
        lines.append(f"  first step of {side}: {extra:.0f} MiB more at most, {peak:.0f} MiB in all, {step['seconds']:.2f} s")
    if figures.get("target"):
        lines.append(f"  target: {figures['target']} times as fast")
    return "\n".join([*lines, f"  {figures['difference']}", ""])


def main(
    script: str,
    comparisons: Mapping[str, Callable[[str], Comparison]],
    description: str | None,
    on_request: Mapping[str, Callable[[str], Comparison]] | None = None,
) -> None:
    """The command line of a benchmark.

    Args:
        script: the module's name, as in ``python -m benchmarks.tokenizers``.
        comparisons: name -> a function from the device ("cpu" or "cuda") to a comparison.
        description: the module's docstring.
        on_request: further comparisons, which run only when they are named.
    """
    known = {**comparisons, **(on_request or {})}
    parser = argparse.ArgumentParser(script, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "comparisons", nargs="*", metavar="comparison", help=f"of {', '.join(known)}; default: {', '.join(comparisons)}"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too, one JSON object a line")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.comparisons) - set(known)
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(options.threads)
    chosen = {name: known[name](options.device) for name in (options.comparisons or comparisons)}
    if options.memory_of:
        (comparison,) = chosen.values()
        step = comparison.sides[options.memory_of]()
        before = peak_memory(options.device)
        seconds, _ = time_of(step, options.device)
        peak = peak_memory(options.device)
        sys.stdout.write(json.dumps({"seconds": seconds, "extra_bytes": peak - before, "peak_bytes": peak}) + "\n")
        return
    # Before anything else: to a new process the system counts what its parent once held as its own peak.
    first = {
        name: {side: first_step(script, name, side, options) for side in comparison.sides}
        for name, comparison in chosen.items()
        if comparison.memory
    }
    for name, comparison in chosen.items():
        figures = {"benchmark": f"{script} {name}", **measure(comparison, options), **about_this_run(options)}
        if name in first:
            figures["first_step"] = first[name]
        sys.stdout.write(described(figures))
        sys.stdout.flush()
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(figures) + "\n")
