"""Emu3's tokenizer at its published widths beside transformers' port, in half precision, and with a memory budget.

    python benchmarks/emu3_vq.py                                # all comparisons
    python benchmarks/emu3_vq.py port --size 256 --repeats 3    # one of them
    python benchmarks/emu3_vq.py memory --size 512 --json figures.json
    python benchmarks/emu3_vq.py --device cuda

Weights are random, the same on both sides. Both sides run in one process, turn by turn, so that whatever else the machine does
hits both; the ratio is the median over the turns. Peak memory comes from a fresh process for each side, where weights count.
"""

import argparse
import copy
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmblocks.layers.stripes import set_memory_budget
from mmblocks.tokenizers.emu3_vq import Emu3VQ

Step = Callable[[], Any]
Figures = dict[str, Any]

CHANNELS = 256
"""At the finest level, in the published model."""

MARGIN = 1e-5
"""In squared distance, relative to the features' variance: a code that is nearer by less may differ by rounding."""


def picture(size: int, device: str) -> Tensor:
    """Large shapes and a little noise."""
    generator = torch.Generator().manual_seed(0)
    shapes = interpolate(torch.rand(1, 3, 12, 12, generator=generator), size=(size, size), mode="bicubic")
    return (shapes + 0.05 * torch.randn(shapes.shape, generator=generator)).clamp(0, 1).to(device)


@torch.no_grad()
def own(device: str) -> Any:
    """The published widths; weights under which a picture is not lost in the biases, and codes where its features are."""
    torch.manual_seed(0)
    tokenizer: Any = Emu3VQ(channels=CHANNELS).eval().to(device)
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    features = tokenizer.features(picture(64, device)).flatten(0, -2)
    tokenizer.bottleneck.codes.normal_().mul_(2 * features.std(dim=0)).add_(features.mean(dim=0))
    return tokenizer


def port(tokenizer: Any, device: str) -> Any:
    """transformers' model of the same weights."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    (layout,) = (layout for layout in Emu3VQ.layouts if layout.name == "emu3-transformers")
    model: Any = Emu3VQVAE(Emu3VQVAEConfig(base_channels=CHANNELS, hidden_size=4 * CHANNELS)).eval().to(device)
    model.load_state_dict(dict(layout.convert(tokenizer.state_dict(), tokenizer.config, to="theirs")))
    return model


def time_of(step: Step, device: str) -> tuple[float, float]:
    """Seconds of one step: by the clock, and of all this process's threads together."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    start, busy = time.perf_counter(), time.process_time()
    step()
    synchronise()
    return time.perf_counter() - start, time.process_time() - busy


def turns(sides: dict[str, Step], options: argparse.Namespace) -> Figures:
    """Times of each side, which has run before, and how many times as fast the first is.

    The processor's own time says more than the clock where other programs run too.
    """
    measured = [{side: time_of(step, options.device) for side, step in sides.items()} for _ in range(options.repeats)]
    fast, slow = sides
    figures: Figures = {}
    for number, kind in enumerate(("", "cpu_")):
        ratios = [turn[slow][number] / turn[fast][number] for turn in measured]
        figures[f"{kind}seconds"] = {side: median(turn[side][number] for turn in measured) for side in sides}
        figures[f"{kind}ratio"], figures[f"{kind}ratio_min"], figures[f"{kind}ratio_max"] = median(ratios), min(ratios), max(ratios)
    return figures


@torch.no_grad()
def compare_with_port(options: argparse.Namespace) -> Figures:
    """An image to codes and back."""
    tokenizer = own(options.device)
    theirs = port(tokenizer, options.device)
    pixels = picture(options.size, options.device)
    normalised, sizes = pixels * 2 - 1, torch.tensor([pixels.shape[2:]])

    def ours() -> tuple[Tensor, Tensor]:
        ids = tokenizer.encode(pixels).ids
        return ids, tokenizer.decoder(tokenizer.lookup(ids))

    def reference() -> tuple[Tensor, Tensor]:
        (ids,) = theirs.encode(normalised, sizes).image_tokens
        return ids[None], theirs.decode(ids[None])

    (ids, decoded), (other_ids, other_decoded) = ours(), reference()
    features = tokenizer.features(pixels)
    differing = (ids != other_ids).nonzero(as_tuple=True)
    distances = [(features - tokenizer.lookup(found)).square().sum(-1) for found in (ids, other_ids)]
    spread = features.flatten(0, -2).var(dim=0).sum()
    gap = float(((distances[0] - distances[1]).abs() / spread)[differing].max()) if len(differing[0]) else 0.0
    if gap > MARGIN:
        raise SystemExit(f"{len(differing[0])} codes differ beyond rounding: by {gap} of the features' variance")
    return {
        **turns({"ours": ours, "transformers": reference}, options),
        "what": "encode and decode one image, float32",
        "target": 2.5,
        "ids_that_differ": f"{len(differing[0])} of {ids.numel()}",
        "pixels_differ_by": float((decoded - other_decoded).abs().max()) if not len(differing[0]) else None,
    }


@torch.no_grad()
def compare_half(options: argparse.Namespace) -> Figures:
    """Decoding in bfloat16, channels last, beside float32; and the ids of an encoder in bfloat16."""
    tokenizer = own(options.device)
    pixels = picture(options.size, options.device)
    latents = tokenizer.encode(pixels)
    half = copy.deepcopy(tokenizer).bfloat16()
    for part in (half.encoder, half.decoder):
        part.spatial.to(memory_format=torch.channels_last)
    codes = tokenizer.lookup(latents.ids)
    sides: dict[str, Step] = {
        "bfloat16, channels last": lambda: half.decoder(codes.bfloat16()),
        "float32": lambda: tokenizer.decoder(codes),
    }
    for step in sides.values():
        step()  # the first call finds memory that is not there yet
    half_ids = tokenizer.bottleneck(half.encoder((pixels * 2 - 1).bfloat16()).float()).ids
    return {
        **turns(sides, options),
        "what": "decode one image",
        "target": "1.8 where there is bfloat16 arithmetic",
        "bfloat16_arithmetic": bfloat16_arithmetic(options.device),
        "ids_changed_by_a_bfloat16_encoder": float((half_ids != latents.ids).double().mean()),
    }


def bfloat16_arithmetic(device: str) -> str:
    """What the hardware has."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return ", ".join(sorted(flags & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})) or "none found"


def compare_memory(options: argparse.Namespace) -> Figures:
    """Peaks of encoding and decoding, each side in its own process, with the budget of one map of the finest level."""
    budget = CHANNELS * options.size**2 * 4
    command = [sys.executable, __file__, "--size", str(options.size), "--device", options.device, "--threads", str(options.threads)]
    peaks = {}
    for side in ("whole maps", "budget"):
        worker = subprocess.run([*command, "--peak-of", side], check=True, capture_output=True, text=True)
        peaks[side] = json.loads(worker.stdout)
    return {"what": "peak MiB, and seconds", "budget_mib": budget / 2**20, **peaks}


@torch.no_grad()
def peak_of(options: argparse.Namespace) -> Figures:
    """What a fresh process holds before, while encoding and while decoding."""
    tokenizer, pixels = own(options.device), picture(options.size, options.device)
    if options.peak_of == "budget":
        set_memory_budget(tokenizer, CHANNELS * options.size**2 * 4)
    before = peak_memory(options.device)
    start = time.perf_counter()
    ids = tokenizer.encode(pixels).ids
    encoded, after_encoding = time.perf_counter(), peak_memory(options.device)
    pixels = tokenizer.decode(ids)
    return {
        "before": before,
        "encode": after_encoding,
        "decode": peak_memory(options.device),
        "encode_seconds": encoded - start,
        "decode_seconds": time.perf_counter() - encoded,
        "mean": [float(ids.double().mean()), float(pixels.double().mean())],
    }


def peak_memory(device: str) -> int:
    """The most this process has held so far, in MiB; on CUDA, what tensors took."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


COMPARISONS = {"memory": compare_memory, "port": compare_with_port, "half": compare_half}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", metavar="comparison", help=f"of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--peak-of", choices=("whole maps", "budget"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        sys.stdout.write(json.dumps(peak_of(options)))
        return
    unknown = set(options.comparisons) - set(COMPARISONS)
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")
    shared = {
        "size": options.size,
        "repeats": options.repeats,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    figures = []
    # Memory first: to a new process the system counts what its parent once held as its own peak.
    for name, compare in COMPARISONS.items():
        if not options.comparisons or name in options.comparisons:
            figures.append({"comparison": name, **compare(options), **shared})
            sys.stdout.write(json.dumps(figures[-1], indent=1) + "\n")
            sys.stdout.flush()
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
