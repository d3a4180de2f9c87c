"""How fast, and in how much memory, the encoders run beside timm and open_clip, on the CPU or a GPU.

    python benchmarks/encoders.py                          # all comparisons
    python benchmarks/encoders.py contrastive loading      # some of them
    python benchmarks/encoders.py base --repeats 9 --json figures.json

Both sides have the same weights and inputs in one process, turn by turn, so that whatever else the machine does hits both; a ratio
is the median over the turns, above 1 where ours is faster. Peak memory, above what is held before the call, comes from a fresh
process for each side (CPU).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

Step = Callable[[], Any]
Sides = dict[str, Step]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOWERS = {
    "base": ("EVA02_CLIP_B_psz16_s8B", "eva02_base_patch16_clip_224", "EVA02-B-16"),
    "large": ("EVA02_CLIP_L_psz14_s4B", "eva02_large_patch14_clip_224", "EVA02-L-14"),
}
LOCAL, GLOBAL, WIDTH = 2048, 16384, 512
"""Pairs of one process, of all, and the width of their embeddings."""


def towers(name: str, batch: int) -> Sides:
    """The image tower, ours and those of timm and open_clip, and ours in half precision and compiled."""
    import open_clip  # type: ignore[import-untyped]
    import timm

    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments
    from mmblocks.encoders.eva_clip_vision import EVACLIPVision
    from mmblocks.layers.pixels import CLIP_MEAN, CLIP_STD, normalise

    ours_name, timm_name, clip_name = TOWERS[name]
    arguments = eva_clip_arguments(ours_name)["vision"]
    ours = EVACLIPVision(**arguments).eval().to(DEVICE)
    torch.nn.init.normal_(ours.get_parameter("head.weight"), std=0.02)  # it begins at almost nothing
    theirs = timm.create_model(timm_name, num_classes=arguments["embed_dim"]).eval().to(DEVICE)
    theirs.load_state_dict(_for_timm(ours.state_dict()))
    clip = open_clip.create_model(clip_name, load_weights=False, pretrained_text=False).visual.eval().to(DEVICE)
    clip.trunk.load_state_dict(theirs.state_dict())

    half = EVACLIPVision(**arguments).eval().to(DEVICE, torch.bfloat16)
    half.load_state_dict(ours.state_dict())
    compiled = torch.compile(ours.embed)
    pixels = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    # All begin with pixels in [0, 1].
    steps: Sides = {
        "ours": lambda: ours.embed(pixels),
        "timm": lambda: theirs(normalise(pixels, CLIP_MEAN, CLIP_STD)),
        "open_clip": lambda: clip(normalise(pixels, CLIP_MEAN, CLIP_STD)),
        "ours, bf16": lambda: half.embed(pixels),
        "ours, compiled": lambda: compiled(pixels),
    }
    return {side: torch.inference_mode()(step) for side, step in steps.items()}


def _for_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("tower.vit."): tensor for name, tensor in tensors.items()}


def contrastive(name: str) -> dict[str, Callable[[], Step]]:
    """The loss of one of several processes, its own rows against the columns of all, and its gradients.

    "contrastive" is CLIP's local loss, where what other processes sent has no gradient; "contrastive_gathered" sends it back.
    """
    local, total = LOCAL, GLOBAL

    def inputs() -> list[Tensor]:
        source = torch.Generator().manual_seed(0)
        tensors = [normalize(torch.randn(count, WIDTH, generator=source), dim=-1) for count in (local, local, total, total)]
        image, text, images, texts = tensors
        images[:local], texts[:local] = image, text
        learned = (image, text, *((images, texts) if name == "contrastive_gathered" else ()))
        for tensor in learned:
            tensor.requires_grad_()
        return [*tensors, torch.tensor(14.0, requires_grad=True)]

    def ours() -> Step:
        from mmblocks.training.contrastive import picks

        image, text, images, texts, scale = values = inputs()

        def step() -> list[Tensor]:
            loss = (picks(image, texts, scale, 0, 0.0)[0] + picks(text, images, scale, 0, 0.0)[0]) / 2
            return [loss, *torch.autograd.grad(loss, [value for value in values if value.requires_grad])]

        return step

    def theirs() -> Step:
        from open_clip.loss import ClipLoss  # type: ignore[import-untyped]

        image, text, images, texts, scale = values = inputs()

        class Rows(ClipLoss):  # type: ignore[misc]
            """ClipLoss as it is behind gathering, which needs several processes."""

            def get_logits(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Any = None) -> Any:
                return logit_scale * image @ texts.T, logit_scale * text @ images.T

        criterion = Rows()

        def step() -> list[Tensor]:
            loss = criterion(image, text, scale)
            return [loss, *torch.autograd.grad(loss, [value for value in values if value.requires_grad])]

        return step

    return {"ours": ours, "open_clip": theirs}


def loading(num_layers: int) -> dict[str, Any]:
    """EVA-CLIP-8B's image tower with fewer layers, from a folder of shards, in a fresh process; 18B built without values."""
    from mmblocks.encoders.eva_clip import EVACLIP
    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments

    with torch.device("meta"):
        EVACLIP(**eva_clip_arguments("EVA02_CLIP_B_psz16_s8B"))  # what is imported at first use is not counted
        start = time.perf_counter()
        EVACLIP(**eva_clip_arguments("EVA_CLIP_18B_psz14_s6B"))
        built = time.perf_counter() - start
    with TemporaryDirectory() as folder:
        # In processes of their own: this one stays small, and neither counts what the other holds.
        size = int(_fresh("loading", "--layers", str(num_layers), "--write", folder))
        peak = int(_fresh("loading", "--read", folder))
    return {
        "comparison": "loading",
        "title": f"EVA-CLIP-8B's image tower of {num_layers} layers from shards, every value read",
        "weights_bytes": size,
        "peak_bytes": peak,
        "peak_over_weights": peak / size,
        "seconds_18b_on_meta": built,
    }


def write_shards(folder: str, num_layers: int) -> int:
    """An image tower of EVA-CLIP-8B's widths, with random values in half precision; how many bytes it has."""
    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments
    from mmblocks.encoders.eva_clip_vision import EVACLIPVision

    arguments = eva_clip_arguments("EVA_CLIP_8B_psz14_s9B")["vision"]
    arguments["tower"]["num_layers"] = num_layers
    with torch.device("meta"):
        vision = EVACLIPVision(**arguments)
    vision.half().to_empty(device="cpu")
    for parameter in vision.parameters():
        torch.nn.init.uniform_(parameter)
    size = sum(tensor.nbytes for tensor in vision.state_dict().values())
    vision.save_pretrained(folder, max_shard_size=size // 4)
    return size


def read_shards(folder: str) -> int:
    """The extra peak memory of loading a folder, with all of it in memory."""
    import timm.models.eva  # noqa: F401  imported at first use

    from mmblocks.encoders.eva_clip_vision import EVACLIPVision

    before = peak_memory()
    vision = EVACLIPVision.from_pretrained(folder)
    for tensor in vision.state_dict().values():
        tensor.sum()  # files are mapped: read now
    return peak_memory() - before


def check(holds: bool, message: str) -> None:
    """Figures of two computations that differ are worth nothing."""
    if not holds:
        raise SystemExit(message)


def peak_memory() -> int:
    """The most this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes, on Linux, what the parent had once held
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def time_of(step: Step) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(sides: Sides, repeats: int) -> dict[str, Any]:
    """Times of all sides, and how much faster than each other side ours is."""
    for step in sides.values():
        step()
    turns = [{side: time_of(step) for side, step in sides.items()} for _ in range(repeats)]
    ratios = {side: [turn[side] / turn["ours"] for turn in turns] for side in sides if side != "ours"}
    return {
        "seconds": {side: median(turn[side] for turn in turns) for side in sides},
        "ratio": {side: {"median": median(values), "min": min(values), "max": max(values)} for side, values in ratios.items()},
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "device": str(DEVICE),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def compare_towers(name: str, batch: int, repeats: int) -> dict[str, Any]:
    """Times of a tower's sides; all in float32 must give the same embeddings."""
    sides = towers(name, batch)
    wanted = sides["timm"]()
    worst = {side: float((step() - wanted).abs().max()) for side, step in sides.items()}
    largest = float(wanted.abs().max())
    for side, off in worst.items():
        check(off < (0.05 if "bf16" in side else 1e-4) * max(largest, 1), f"{side} differs from timm by {off}")
    title = f"{TOWERS[name][0]}, {batch} images"
    return {"comparison": name, "title": title, "differences": worst, **measured(sides, repeats)}


def compare_contrastive(name: str, repeats: int) -> dict[str, Any]:
    """Times and memory of the contrastive loss, and by what loss and gradients differ."""
    sides = contrastive(name)
    memory = {side: int(_fresh(name, "--memory-of", side)) for side in sides}
    steps = {side: prepare() for side, prepare in sides.items()}
    results = [step() for step in steps.values()]
    worst = max(float((mine - other).detach().abs().max()) for mine, other in zip(*results, strict=True))
    check(worst < 1e-5, f"loss or gradients differ by {worst}")
    return {
        "comparison": name,
        "title": f"{name}: loss and gradients, {LOCAL} rows against {GLOBAL} columns, width {WIDTH}",
        "differences": {"loss and gradients": worst},
        "extra_bytes": memory,
        "memory_ratio": memory["ours"] / memory["open_clip"],
        **measured(steps, repeats),
    }


def _fresh(*options: str) -> str:
    command = [sys.executable, __file__, *options, "--threads", str(torch.get_num_threads())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def described(figures: dict[str, Any]) -> str:
    """One comparison for people to read."""
    lines = [figures["title"]]
    if "seconds" in figures:
        lines.append("  " + ", ".join(f"{side}: {seconds:.3f} s" for side, seconds in figures["seconds"].items()))
    for side, ratio in figures.get("ratio", {}).items():
        spread = f"from {ratio['min']:.2f} to {ratio['max']:.2f} over {figures['repeats']} turns"
        lines.append(f"  time of {side} / ours: {ratio['median']:.3f} ({spread})")
    lines += [f"  {what} differ by at most {off:.1e}" for what, off in figures.get("differences", {}).items()]
    if "extra_bytes" in figures:
        memory = {side: size / 2**20 for side, size in figures["extra_bytes"].items()}
        lines.append(f"  extra peak memory: {', '.join(f'{side} {size:.0f} MiB' for side, size in memory.items())}")
    if "peak_bytes" in figures:
        lines.append(f"  weights {figures['weights_bytes'] / 2**20:.0f} MiB, peak {figures['peak_over_weights']:.3f} times that")
        lines.append(f"  EVA-CLIP-18B built on the meta device in {figures['seconds_18b_on_meta']:.2f} s")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """The command line."""
    names = [*TOWERS, "contrastive", "contrastive_gathered", "loading"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", metavar="comparison", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--batch", type=int, default=8, help="images of a tower's batch")
    parser.add_argument("--layers", type=int, default=4, help="of the tower that is loaded")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.comparisons or names
    if set(chosen) - set(names):
        parser.error(f"no such comparison: {', '.join(set(chosen) - set(names))}; there are {', '.join(names)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.write or options.read:
        print(write_shards(options.write, options.layers) if options.write else read_shards(options.read))  # noqa: T201
        return
    if options.memory_of:
        step = contrastive(chosen[0])[options.memory_of]()
        before = peak_memory()
        step()
        print(peak_memory() - before)  # noqa: T201
        return
    figures = []
    for name in chosen:
        if name in TOWERS:
            figures.append(compare_towers(name, options.batch, options.repeats))
        else:
            figures.append(loading(options.layers) if name == "loading" else compare_contrastive(name, options.repeats))
        sys.stdout.write(described(figures[-1]))
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
