"""Fused ops beside plain PyTorch and the libraries that have them too.

    python -m benchmarks.ops                                  # all comparisons, at sizes for a CPU
    python -m benchmarks.ops linear_ce_float32 attention --repeats 3 --json figures.jsonl
    python -m benchmarks.ops linear_ce_bfloat16               # where the processor has bfloat16 units
    python -m benchmarks.ops --device cuda                    # at the sizes of Emu3, Emu3.5 and EVEv2

All ways get the same inputs. How far each is from the same numbers in wider arithmetic stands beside the times.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, group_norm, linear, rms_norm, silu

from benchmarks.measure import Comparison, Step, Work, check, main
from benchmarks.ways import Way, compare, gaussian
from mmblocks import ops
from mmblocks.layers.attention.attend import Blocks, Prepared, attend, interval_block_mask, prepare
from mmblocks.layers.diffusion.adaln import modulate
from mmblocks.ops.group_norm_silu import group_norm_silu
from mmblocks.ops.lfq_entropy import lfq_entropy
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy
from mmblocks.ops.nearest_code import nearest_code
from mmblocks.ops.routed_linear import RowGroups, group_rows, routed_linear
from mmblocks.sequence.masks import Dense, Intervals, densify
from mmblocks.sequence.positions import RotaryTable, rotary_table, rotate_half_split


def with_kernel(op: Way, device: str) -> dict[str, Way]:
    """Our ways: the kernel and plain PyTorch where there is a GPU, what "auto" chooses elsewhere."""
    return {impl: partial(op, impl=impl) for impl in ("triton", "eager")} if device == "cuda" else {"ours": op}


def compiled(way: Way, device: str) -> dict[str, Way]:
    """The same way through ``torch.compile``, on a GPU alone: on a CPU that takes longer than all the rest."""
    return {"compiled": torch.compile(way)} if device == "cuda" else {}


def from_logits(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As everybody writes it."""
    return cross_entropy(linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32)), target)


def mean_of_rows(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As a head has it, whose losses are averaged later: where that cannot be seen, logits are made a second time."""
    return linear_cross_entropy(hidden, weight, target, reduction="none").mean()


def loss_rivals(device: str, dtype: torch.dtype) -> tuple[dict[str, Way], tuple[str, ...]]:
    """Other losses without logits that are installed, and names of those that are not."""
    ways: dict[str, Way] = {}
    chunked: Any = getattr(torch.nn.functional, "linear_cross_entropy", None)
    options: Any = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if chunked and options and (device == "cuda" or dtype == torch.float32):  # in bfloat16 a CPU takes minutes
        ways["torch, 256 rows a chunk"] = partial(chunked, options=options(batch_chunk_size=256, chunking_method=None))
    if device == "cuda" and find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        liger = LigerFusedLinearCrossEntropyLoss()
        ways["Liger-Kernel"] = lambda hidden, weight, target: liger(weight, hidden, target)
    if device == "cuda" and find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut  # type: ignore[import-not-found]

        ways["cut-cross-entropy"] = cut
    return ways, tuple(name for name in ("liger_kernel", "cut_cross_entropy") if not find_spec(name))


def linear_ce(rows: int, dim: int, vocab: int, dtype: torch.dtype, device: str, *, learns: bool = True) -> Comparison:
    """The loss of a vocabulary head, with gradients or, for evaluation, without."""

    def inputs() -> tuple[Tensor, ...]:
        hidden = gaussian(rows, dim, device=device, dtype=dtype)
        weight = gaussian(vocab, dim, device=device, dtype=dtype, seed=1).mul_(dim**-0.5)
        target = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2)).to(device)
        return hidden.requires_grad_(learns), weight.requires_grad_(learns), target

    ours: dict[str, Way] = {"ours": linear_cross_entropy, "ours, a loss for each row": mean_of_rows}
    if not learns:
        ours = with_kernel(linear_cross_entropy, device)
    rivals, missing = loss_rivals(device, dtype) if learns else ({}, ())
    first, *rest = ours.items()
    ways = dict([first, ("logits written out", from_logits), *rest, *compiled(from_logits, device).items(), *rivals.items()])
    product, held = 2.0 * rows * dim * vocab, (rows + vocab) * dim * dtype.itemsize
    work = Work(3 * product, 2 * held, dtype) if learns else Work(product, held, dtype)
    name = str(dtype).removeprefix("torch.")
    title = f"loss of a head{' and its gradients' if learns else ''}, N={rows} D={dim} V={vocab}, {name}"
    return compare(title, inputs, ways, exact=from_logits, dtype=dtype, missing=missing, target=1.0, work=work)


def from_distances(x: Tensor, codes: Tensor) -> Tensor:
    """All of them at once."""
    return torch.addmm(codes.square().sum(dim=1) / 2, x, codes.T, alpha=-1).argmin(dim=1)


def nearest(rows: int, num_codes: int, dim: int, device: str) -> Comparison:
    """The search of a codebook."""

    def inputs() -> tuple[Tensor, Tensor]:
        return gaussian(rows, dim, device=device), gaussian(num_codes, dim, device=device, seed=1)

    first, *rest = with_kernel(nearest_code, device).items()
    ways = dict([first, ("distances written out", from_distances), *rest, *compiled(from_distances, device).items()])

    def difference() -> str:
        x, codes = inputs()
        found = {side: way(x, codes) for side, way in ways.items()}
        mine, plain = list(found.values())[:2]
        differs = (mine != plain).nonzero().flatten()
        near, other = ((x[differs].double() - codes[ids[differs]].double()).norm(dim=1) for ids in (mine, plain))
        further = float((near - other).max()) if len(differs) else 0.0
        check(further < 1e-5, f"ours is further by {further}")
        return f"{len(differs)} of {rows} ids differ; in float64 ours is further by at most {further:.0e}"

    def prepared(way: Way) -> Step:
        return partial(way, *inputs())

    work = Work(2.0 * rows * num_codes * dim, 4 * (rows + num_codes) * dim + 8 * rows)
    sides = {side: partial(prepared, way) for side, way in ways.items()}
    return Comparison(f"nearest code, N={rows} K={num_codes} D={dim}", sides, difference, target=1.0, work=work)


def from_choices(x: Tensor) -> Tensor:
    """Both entropies from the weights of all codes for all features."""
    bits = x.shape[1]
    codes = (torch.arange(2**bits, device=x.device)[:, None] >> torch.arange(bits, device=x.device) & 1).to(x.dtype) * 2 - 1
    logs = (x @ codes.T).mul(2 / 0.01).log_softmax(dim=1)
    weights = logs.exp()
    mean = weights.mean(dim=0)
    return torch.stack([-(weights * logs).sum(dim=1).mean(), -(mean * (mean + 1e-5).log()).sum()])


def lfq(rows: int, bits: int, device: str) -> Comparison:
    """Entropies of lookup-free quantization, and their gradient."""

    def inputs() -> tuple[Tensor]:
        return (gaussian(rows, bits, device=device).mul_(0.05).requires_grad_(),)

    ways = {
        "ours": lambda x: torch.stack(lfq_entropy(x)),
        "all choices written out": from_choices,
        **compiled(from_choices, device),
    }
    title = f"lookup-free entropies and their gradient, N={rows}, {bits} bits"
    wide = torch.float64 if rows << bits <= 2**25 else torch.float32
    return compare(title, inputs, ways, exact=from_choices, wide=wide, target=2.5)


def both_and_mixed(x: Tensor, text: Tensor, vision: Tensor, group: Tensor, _: RowGroups) -> Tensor:
    """Every row by both weights, then one of the two."""
    return torch.where(group[:, None] == 0, linear(x, text), linear(x, vision))


def routed_rows(x: Tensor, text: Tensor, vision: Tensor, _: Tensor, groups: RowGroups) -> Tensor:
    """With the sorting, which a trunk does once for all its layers."""
    return groups.restore(routed_linear(groups.sort(x), groups, [text, vision]))


def routed(rows: int, dim: int, width: int, dtype: torch.dtype, device: str) -> Comparison:
    """A linear map for each of two modalities, half of the rows each."""

    def inputs() -> tuple[Any, ...]:
        x = gaussian(rows, dim, device=device, dtype=dtype).requires_grad_()
        weights = [(gaussian(width, dim, device=device, dtype=dtype, seed=s) * dim**-0.5).requires_grad_() for s in (1, 2)]
        group = (torch.arange(rows, device=device) % 64 >= 32).long()
        return x, *weights, group, group_rows(group, 2)

    ways = {"ours": routed_rows, "both, then mixed": both_and_mixed, **compiled(both_and_mixed, device)}
    held = (rows * (dim + width) + 2 * dim * width) * dtype.itemsize
    title = f"a linear map of two modalities and its gradients, N={rows}, {dim} to {width}, {str(dtype).removeprefix('torch.')}"
    work = Work(6.0 * rows * dim * width, 2 * held, dtype)
    return compare(title, inputs, ways, exact=both_and_mixed, dtype=dtype, target=1.8, work=work)


def norm_then_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """As everybody writes it."""
    return silu(group_norm(x, groups, weight, bias))


def norm(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Comparison:
    """Group norm and SiLU of a map."""

    def inputs() -> tuple[Any, ...]:
        weight, bias = (gaussian(shape[1], device=device, dtype=dtype, seed=seed) for seed in (1, 2))
        x = gaussian(*shape, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last) if device == "cuda" else x, 32, weight, bias

    first, *rest = with_kernel(group_norm_silu, device).items()
    ways = dict([first, ("plain PyTorch", norm_then_silu), *rest, *compiled(norm_then_silu, device).items()])
    work = Work(0.0, 2 * torch.Size(shape).numel() * dtype.itemsize)
    title = f"group norm and SiLU of {' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
    return compare(title, inputs, ways, exact=norm_then_silu, dtype=dtype, target=1.5 if device == "cuda" else None, work=work)


def text_and_images(length: int, num_text: int, num_image: int, device: str) -> Intervals:
    """Text that sees what came before, and images that see all of themselves too."""
    place = torch.arange(length, device=device)
    within = place % (num_text + num_image)
    end = torch.where(within < num_text, place + 1, (place - within + num_text + num_image).clamp(max=length))
    return Intervals(torch.zeros_like(end)[None], end[None])


def attention(length: int, heads: int, dim: int, dtype: torch.dtype, device: str) -> Comparison:
    """Text with images of 576 tokens; masks are made beforehand, once for all layers."""
    where = torch.device(device)

    def masks() -> dict[str, Prepared]:
        mask = text_and_images(length, 64, 576, device)
        found: dict[str, Prepared] = {
            "ours": prepare(mask, length, length, where),
            "a boolean for each pair": Dense(densify(mask, length, length, where)),
        }
        if device == "cuda":
            found["flex, its own mask"] = Blocks(flex_mask(mask, length))
        return found

    def inputs() -> tuple[Any, ...]:
        return *(gaussian(1, heads, length, dim, device=device, dtype=dtype, seed=seed) for seed in range(3)), masks()

    def way(side: str, query: Tensor, key: Tensor, value: Tensor, masks: dict[str, Prepared]) -> Tensor:
        return attend(query, key, value, masks[side])

    ways = {side: partial(way, side) for side in masks()}
    title = f"attention of text and images, L={length}, {heads} heads of {dim}, {str(dtype).removeprefix('torch.')}"
    exact = partial(way, "a boolean for each pair")
    return compare(title, inputs, ways, exact=exact, dtype=dtype, target=1.5)


def flex_mask(mask: Intervals, length: int) -> Any:
    """As flex_attention makes it: by a visit to every pair."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= mask.start[b, q]) & (k < mask.end[b, q])

    return create_block_mask(sees, 1, None, length, length, device=str(mask.start.device))


def block_mask(length: int, device: str) -> Comparison:
    """A block mask for flex_attention, from two integers a query."""
    ways = {"ours": interval_block_mask, "create_block_mask": flex_mask}

    def prepared(way: Way) -> Step:
        return partial(way, text_and_images(length, 64, 576, device), length)

    def difference() -> str:
        mine, other = (prepared(way)().to_dense() for way in ways.values())
        check(torch.equal(mine, other), "the tiles differ")
        return "the same tiles"

    sides = {side: partial(prepared, way) for side, way in ways.items()}
    return Comparison(f"block mask of text and images, L={length}", sides, difference)


def decoder(size: int, device: str) -> Comparison:
    """VQGAN's decoder as a whole: channels last with the kernel, beside plain PyTorch's order."""
    from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder

    def inputs() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model: Any = ConvDecoder().to(device, torch.bfloat16).eval()
        return model, gaussian(1, size // 16, size // 16, 256, device=device, dtype=torch.bfloat16)

    def ours(model: Any, features: Tensor) -> Tensor:
        with ops.using("triton" if device == "cuda" else "auto"):
            return model.to(memory_format=torch.channels_last)(features).contiguous()

    def plain(model: Any, features: Tensor) -> Tensor:
        with ops.using("eager"):
            return model.to(memory_format=torch.contiguous_format)(features)

    title = f"VQGAN's decoder to {size} x {size}, bfloat16"
    return compare(title, inputs, {"ours": ours, "plain PyTorch": plain}, exact=plain, wide=torch.bfloat16,
                   dtype=torch.bfloat16, target=1.5)  # fmt: skip


def graphs(rows: int, width: int, num_blocks: int, dtype: torch.dtype, device: str) -> Comparison:
    """Sampling with MAR's head: its network once per step, replayed from a recording or launched anew."""
    from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
    from mmblocks.ops.cuda_graphs import repeated, replaying

    def inputs() -> tuple[Any, ...]:
        torch.manual_seed(0)
        net: Any = AdaLNMLP(dim=16, condition_dim=width, width=width, num_blocks=num_blocks, out_dim=16).to(device, dtype).eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter.requires_grad_(False), std=0.02)
        shapes = ((rows, 16), (100, width), (rows, width))
        return net, *(gaussian(*shape, device=device, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes))

    def sample(wanted: bool, net: Any, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        with replaying(wanted):
            step = repeated(net)
            for time in times:
                x = x - 0.01 * step(x, time, condition)
        return x

    def exact(net: Any, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return sample(False, copy.deepcopy(net).to(x.dtype), x, times, condition)

    ways = {"ours, replayed": partial(sample, True), "launched": partial(sample, False)}
    title = f"100 steps of a denoising MLP, {rows} rows, {num_blocks} x {width}, {str(dtype).removeprefix('torch.')}"
    return compare(title, inputs, ways, exact=exact, dtype=dtype)


def left_to_the_compiler(rows: int, dtype: torch.dtype) -> dict[str, Callable[[str], Comparison]]:
    """Plain functions that no kernel is written for, since ``torch.compile`` makes one pass of them."""

    def table(device: str) -> RotaryTable:
        return rotary_table(torch.arange(rows, device=device)[None], 128, 1e6)

    def many(device: str, *shape: int, count: int) -> tuple[Tensor, ...]:
        return tuple(gaussian(*shape, device=device, dtype=dtype, seed=seed) for seed in range(count))

    known: dict[str, tuple[Way, Callable[[str], tuple[Any, ...]], int]] = {
        "sum_and_norm": (lambda x, y: rms_norm(x + y, x.shape[-1:]), lambda device: many(device, rows, 4096, count=2), 3),
        "swiglu": (lambda gate, up: silu(gate) * up, lambda device: many(device, rows, 2730, count=2), 3),
        "adaln": (modulate, lambda device: many(device, rows, 1152, count=3), 4),
        "rotary": (rotate_half_split, lambda device: (*many(device, 1, 8, rows, 128, count=1), table(device)), 2),
    }

    def one(name: str, device: str) -> Comparison:
        function, shaped, passes = known[name]
        inputs = partial(shaped, device)
        ways = {"compiled": torch.compile(function), "as written": function}
        work = Work(0.0, passes * inputs()[0].nbytes)
        title = f"{name.replace('_', ' ')}, {rows} rows, {str(dtype).removeprefix('torch.')}"
        compared = compare(title, inputs, ways, exact=function, dtype=dtype, work=work, memory=False)
        return dataclasses.replace(compared, difference=lambda: f"{compared.difference()}; {kernels(function, inputs())}")

    return {name: partial(one, name) for name in known}


def kernels(function: Way, values: tuple[Any, ...]) -> str:
    """How many kernels the compiler makes of a function; one has read its inputs once and written its results once."""
    from torch._inductor import metrics

    torch.compiler.reset()
    metrics.reset()
    torch.compile(function)(*values)
    return f"compiled to {metrics.generated_kernel_count} kernel(s)"


HALF = torch.bfloat16

Known = dict[str, Callable[[str], Comparison]]

ON_CPU: Known = {
    "linear_ce_float32": partial(linear_ce, 2048, 512, 65536, torch.float32),
    "nearest_narrow": partial(nearest, 4096, 32768, 4),
    "nearest_wide": partial(nearest, 1024, 131072, 256),
    "lfq": partial(lfq, 512, 16),
    "routed": partial(routed, 1024, 2048, 5632, torch.float32),
    "norm": partial(norm, (1, 128, 256, 256), torch.float32),
    "attention": partial(attention, 2048, 8, 64, torch.float32),
    **left_to_the_compiler(1024, torch.float32),
}

WITH_BFLOAT16_UNITS: Known = {
    "linear_ce_bfloat16": partial(linear_ce, 2048, 512, 65536, HALF),
    "linear_ce_bfloat16_short": partial(linear_ce, 128, 512, 16384, HALF),
}
"""A processor without them takes minutes for a step of logits that are written out."""

ON_CUDA: Known = {
    "linear_ce_emu3": partial(linear_ce, 8192, 4096, 184622, HALF),
    "linear_ce_emu35": partial(linear_ce, 8192, 5120, 282926, HALF),
    "linear_ce_emu3_evaluation": partial(linear_ce, 8192, 4096, 184622, HALF, learns=False),
    "nearest_emu3": partial(nearest, 65536, 32768, 4),
    "nearest_emu35": partial(nearest, 16384, 131072, 256),
    "lfq_18": partial(lfq, 4096, 18),
    "routed_eve2": partial(routed, 8192, 3584, 18944, HALF),
    "norm_decoder": partial(norm, (1, 128, 1024, 1024), HALF),
    "decoder_512": partial(decoder, 512),
    "decoder_1024": partial(decoder, 1024),
    "attention_8192": partial(attention, 8192, 32, 128, HALF),
    "block_mask": partial(block_mask, 8192),
    "graphs": partial(graphs, 64, 1536, 12, HALF),
    **left_to_the_compiler(8192, HALF),
}

if __name__ == "__main__":
    gpu = "cuda" in sys.argv or "--device=cuda" in sys.argv
    here, others = (ON_CUDA, ON_CPU) if gpu else (ON_CPU, ON_CUDA)
    on_request = {name: build for name, build in {**others, **WITH_BFLOAT16_UNITS}.items() if name not in here}
    main("benchmarks.ops", here, __doc__, on_request=on_request)
