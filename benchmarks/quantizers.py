"""How fast, and in how much memory, the quantizers run beside vector-quantize-pytorch, on the CPU.

    python benchmarks/quantizers.py                      # all comparisons
    python benchmarks/quantizers.py nearest_narrow ema   # some of them
    python benchmarks/quantizers.py --repeats 3 --json figures.json

Both sides get the same inputs in one process, turn by turn, so that whatever else the machine does hits both; the ratio is the
median over the turns. Peak memory, above what is held before the call, comes from a fresh process for each side.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same numbers.

    Attributes:
        title: what is compared.
        sides: name -> a function that prepares everything and returns what is to be timed.
        difference: what the two results of one step differ by, in words; raises AssertionError where that is too much.
    """

    title: str
    sides: dict[str, Callable[[], Step]]
    difference: Callable[[], str]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(num_vectors: int, num_codes: int, dim: int) -> Comparison:
    """The search alone, against a VectorQuantize in evaluation."""

    def ours() -> Step:
        from mmblocks.ops.nearest_code import nearest_code

        x, codes = gaussian(num_vectors, dim), gaussian(num_codes, dim, seed=1)
        return lambda: nearest_code(x, codes)

    def theirs() -> Step:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-untyped]

        quantizer = VectorQuantize(dim=dim, codebook_size=num_codes).eval()
        quantizer.codebook = gaussian(num_codes, dim, seed=1)
        x = gaussian(1, num_vectors, dim)
        return torch.no_grad()(lambda: quantizer(x)[1][0])

    def difference() -> str:
        mine, other = ours()(), theirs()()
        differs = (mine != other).nonzero().flatten()
        x, codes = gaussian(num_vectors, dim).double()[differs], gaussian(num_codes, dim, seed=1).double()
        further = (x - codes[mine[differs]]).norm(dim=1) - (x - codes[other[differs]]).norm(dim=1)
        worst = float(further.max()) if len(differs) else 0.0
        check(worst < 1e-6, f"ours is further by {worst}")
        return f"{len(differs)} of {num_vectors} ids differ; in float64 ours is further by at most {worst:.1e}"

    return Comparison(f"nearest code, N={num_vectors} K={num_codes} D={dim}", {"ours": ours, "theirs": theirs}, difference)


def ema(num_vectors: int, num_codes: int, dim: int) -> Comparison:
    """One training step of moving averages: forward, backward to the features, update of the codebook."""
    config = {"dim": dim, "codebook_size": num_codes, "decay": 0.99, "rotation_trick": False}

    def library() -> Any:
        from vector_quantize_pytorch import VectorQuantize

        quantizer = VectorQuantize(**config)
        for name, value in quantizer.state_dict().items():
            if name.endswith(("embed", "embed_avg")):
                value.copy_(gaussian(1, num_codes, dim, seed=1))
        return quantizer

    def own() -> Any:
        from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer

        layout = EMAVectorQuantizer.layouts[0]
        quantizer = EMAVectorQuantizer(**layout.arguments(config))
        quantizer.load_state_dict(dict(layout.convert(library().state_dict(), quantizer.config)))
        return quantizer

    def ours(quantizer: Any = None) -> Step:
        quantizer, x = quantizer or own(), gaussian(1, num_vectors, dim).requires_grad_()

        def step() -> None:
            latents = quantizer(x)
            (latents.z.mean() + latents.loss["commitment"]).backward()

        return step

    def theirs(quantizer: Any = None) -> Step:
        quantizer, x = quantizer or library(), gaussian(1, num_vectors, dim).requires_grad_()

        def step() -> None:
            z, _, loss = quantizer(x)
            (z.mean() + loss).backward()

        return step

    def difference() -> str:
        mine, other = own(), library()
        ours(mine)()
        theirs(other)()
        after = dict(mine.layouts[0].convert(mine.state_dict(), mine.config, to="theirs"))
        worst = max(float((after[name].float() - value.float()).abs().max()) for name, value in other.state_dict().items())
        check(worst < 1e-4, f"the states differ by {worst}")
        return f"codes and averages after the step differ by at most {worst:.1e}"

    title = f"training step of moving averages, N={num_vectors} K={num_codes} D={dim}"
    return Comparison(title, {"ours": ours, "theirs": theirs}, difference)


def lfq(num_vectors: int, bits: int) -> Comparison:
    """Both entropies of lookup-free quantization, and their gradient."""

    def own(width: int) -> tuple[Any, Tensor]:
        from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer

        return LookupFreeQuantizer(bits=(width,), first_bit="most", floor="clamp"), gaussian(1, num_vectors, width)

    def ours() -> Step:
        quantizer, x = own(bits)
        x.requires_grad_()

        def step() -> None:
            losses = quantizer(x).loss
            (losses["sample_entropy"] - losses["codebook_entropy"]).backward()

        return step

    def theirs() -> Step:
        from vector_quantize_pytorch import LFQ

        quantizer, x = LFQ(dim=bits), gaussian(1, num_vectors, bits).requires_grad_()
        return lambda: quantizer(x).entropy_aux_loss.backward()

    def difference() -> str:
        from vector_quantize_pytorch import LFQ

        quantizer, x = own(12)
        losses = quantizer(x).loss
        _, terms = LFQ(dim=12)(x, return_loss_breakdown=True)
        pairs = ((losses["sample_entropy"], terms.per_sample_entropy), (losses["codebook_entropy"], terms.batch_entropy))
        worst = max(abs(float(mine - other)) for mine, other in pairs)
        check(worst < 1e-4, f"the entropies differ by {worst}")
        return f"the entropies of 12 bits differ by at most {worst:.1e}"

    return Comparison(f"entropies, N={num_vectors}, {bits} bits", {"ours": ours, "theirs": theirs}, difference)


COMPARISONS = {
    "nearest_narrow": nearest(16384, 16384, 8),
    "nearest_wide": nearest(2048, 131072, 256),
    "ema": ema(4096, 16384, 8),
    "lfq": lfq(1024, 18),
}


def check(holds: bool, message: str) -> None:
    """Figures of two computations that differ are worth nothing."""
    if not holds:
        raise SystemExit(message)


def peak_memory() -> int:
    """The most this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def extra_memory(name: str, side: str) -> int:
    """Of the first step, in a fresh process."""
    command = [sys.executable, __file__, name, "--memory-of", side, "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def time_of(step: Step) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> dict[str, Any]:
    """The times of one comparison, and by what the results differ."""
    comparison = COMPARISONS[name]
    difference = comparison.difference()
    steps = {side: prepare() for side, prepare in comparison.sides.items()}
    for step in steps.values():
        step()  # the first call finds memory that is not there yet
    turns = [{side: time_of(step) for side, step in steps.items()} for _ in range(repeats)]
    ratios = [turn["theirs"] / turn["ours"] for turn in turns]
    return {
        "comparison": name,
        "title": comparison.title,
        "difference": difference,
        "seconds": {side: median(turn[side] for turn in turns) for side in steps},
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def described(figures: dict[str, Any]) -> str:
    """One comparison for people to read."""
    seconds, memory = figures["seconds"], {side: size / 2**20 for side, size in figures["extra_bytes"].items()}
    return (
        f"{figures['title']}\n"
        f"  {figures['ratio']:.1f} times as fast (from {figures['ratio_min']:.1f} to {figures['ratio_max']:.1f}"
        f" over {figures['repeats']} turns): {seconds['ours']:.3f} s and {seconds['theirs']:.3f} s\n"
        f"  extra peak memory: {memory['ours']:.0f} MiB and {memory['theirs']:.0f} MiB\n"
        f"  {figures['difference']}\n"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", metavar="comparison", help=f"of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.comparisons) - set(COMPARISONS)
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    names = options.comparisons or list(COMPARISONS)
    if options.memory_of:
        step = COMPARISONS[names[0]].sides[options.memory_of]()
        before = peak_memory()
        step()
        sys.stdout.write(str(peak_memory() - before))
        return
    # Before anything else: to a new process the system counts what its parent once held as its own peak.
    memory = {name: {side: extra_memory(name, side) for side in COMPARISONS[name].sides} for name in names}
    figures = []
    for name in names:
        figures.append({**measure(name, options.repeats), "extra_bytes": memory[name]})
        sys.stdout.write(described(figures[-1]))
        sys.stdout.flush()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
