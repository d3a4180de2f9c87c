"""How fast a trunk's layers and masks are beside the plain ways to the same numbers, on the CPU.

    python benchmarks/trunk.py                                # all comparisons, at EVEv2's widths
    python benchmarks/trunk.py masks spans                    # some of them
    python benchmarks/trunk.py --scale 0.05 --repeats 2       # a quick look, with a twentieth of the tokens and widths
    python benchmarks/trunk.py --json figures.json

Both sides get the same inputs in one process, turn by turn, so that whatever else the machine does hits both; the ratio is the
median over the turns. The numbers of both sides are compared before anything is timed.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from mmblocks.layers.attention import attend, interval_block_mask, interval_spans
from mmblocks.masks import Causal, Dense, Intervals, densify, intervals
from mmblocks.ops.routed_linear import group_rows
from mmblocks.positions import RotaryTable, rotary_table, rotate_half_split
from mmblocks.tokens import NO_SPAN, Modality, TokenTable
from mmblocks.trunks.routed_decoder import RoutedDecoder

Step = Callable[[], Any]


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same numbers.

    Attributes:
        title: what is compared.
        ours, plain: what is timed.
        difference: what the results differ by, in words; raises AssertionError where that is too much.
    """

    title: str
    ours: Step
    plain: Step
    difference: Callable[[], str]


def routed(scale: float) -> Comparison:
    """A layer of EVEv2, forward and backward, half of the tokens visual; against both experts for every token, then mixed."""
    heads = max(2, round(28 * scale)) // 2 * 2
    width, inner, tokens = 128 * heads, max(128, round(18944 * scale)), max(32, round(512 * scale**0.5))
    kv_heads = 4 if heads % 4 == 0 else 2
    torch.manual_seed(0)
    trunk = RoutedDecoder(
        dim=width, num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=128, mlp_dim=inner, qkv_bias=True
    )
    layer: Any = trunk.layers[0]
    x = torch.randn(1, tokens, width, requires_grad=True)
    upstream = torch.randn(1, tokens, width)
    vision = torch.zeros(1, tokens, dtype=torch.long)
    vision[:, tokens // 4 : tokens // 4 + tokens // 2] = 1
    rotary = rotary_table(torch.arange(tokens)[None], 128, 1e6)

    def ours() -> Tensor:
        groups = group_rows(vision.flatten(), 2)
        made = layer(groups.sort(x[0]), rotary, Causal(), groups, None, 0)
        out = groups.restore(made)[None]
        out.backward(upstream)
        return out

    def plain() -> Tensor:
        out = computed_twice(layer, x, vision[..., None].float(), rotary)
        out.backward(upstream)
        return out

    def cleared(step: Step) -> Step:
        def run() -> Any:
            layer.zero_grad()
            x.grad = None
            return step()

        return run

    def difference() -> str:
        found = []
        for step in (ours, plain):
            out = cleared(step)().detach()
            check(x.grad is not None, "no gradient")
            found.append([out, x.grad, *(parameter.grad for parameter in layer.parameters())])
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
        check(worst < 1e-4, f"relative difference {worst}")
        return f"output and all gradients differ by at most {worst:.1e} of their norm"

    title = f"routed layer, width {width}, mlp {inner}, {tokens} tokens, forward and backward"
    return Comparison(title, cleared(ours), cleared(plain), difference)


def computed_twice(layer: Any, x: Tensor, vision: Tensor, rotary: RotaryTable) -> Tensor:
    """The layer as published: each part with both sets of weights, and the results mixed by a mask."""

    def both(maps: Any, x: Tensor) -> Tensor:
        return maps["text"](x) * (1 - vision) + maps["vision"](x) * vision

    attention, mlp = layer.attention, layer.mlp
    normed = both(layer.attention_norm, x)
    query, key, value = (
        rearrange(both(project, normed), "b l (h d) -> b h l d", d=attention.head_dim)
        for project in (attention.query, attention.key, attention.value)
    )
    query, key = rotate_half_split(query, rotary), rotate_half_split(key, rotary)
    found = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    x = x + both(attention.output, rearrange(found, "b h l d -> b l (h d)"))
    normed = both(layer.mlp_norm, x)
    text = mlp.down["text"](silu(mlp.gate["text"](normed)) * mlp.up["text"](normed))
    seen = mlp.down["vision"](silu(mlp.gate["vision"](normed)) * mlp.up["vision"](normed))
    return x + text * (1 - vision) + seen * vision


def packed_table(length: int) -> TokenTable:
    """One row of packed documents: text, an image of 256 tokens that see each other, text; 1024 tokens a document."""
    table = TokenTable.text(1, length)
    column = torch.arange(length)
    place = column % 1024
    image = (place >= 256) & (place < 512)
    order = torch.where(image, 256, place)
    return table._replace(
        document=(column // 1024)[None],
        modality=torch.where(image, Modality.VISION.value, Modality.TEXT.value)[None],
        span=torch.where(image, 0, NO_SPAN)[None],
        order=order[None],
    )


def masks(scale: float) -> Comparison:
    """A block mask of packed text and images, from the table; against create_block_mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = max(1024, round(8192 * scale))
    table = packed_table(length)
    document, order = table.document[0], table.order[0]

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (document[q] == document[k]) & (order[k] <= order[q])

    def ours() -> Any:
        return interval_block_mask(lowered(table), length)

    def plain() -> Any:
        return create_block_mask(sees, 1, None, length, length, device="cpu")

    def difference() -> str:
        check(torch.equal(ours().to_dense(), plain().to_dense()), "tiles differ")
        return "the same tiles"

    return Comparison(f"block mask of packed text and images, L={length}", ours, plain, difference)


def spans(scale: float) -> Comparison:
    """Attention of packed text and images, one call for each span; against one call with a boolean mask."""
    length = max(1024, round(8192 * scale))
    mask = lowered(packed_table(length))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 128, generator=generator) for heads in (8, 2, 2))
    dense, per_span = Dense(densify(mask, length, length, "cpu")), interval_spans(mask)

    def ours() -> Tensor:
        return attend(query, key, value, per_span)

    def plain() -> Tensor:
        return attend(query, key, value, dense)

    def difference() -> str:
        worst = float((ours() - plain()).abs().max())
        check(worst < 1e-4, f"difference {worst}")
        return f"outputs differ by at most {worst:.1e}"

    return Comparison(f"attention of packed text and images, L={length}, 8 heads of 128", ours, plain, difference)


def lowered(table: TokenTable) -> Intervals:
    """The table's rule as intervals, which it is known to have."""
    found = intervals(table)
    check(found is not None, "the table has no intervals")
    return found  # type: ignore[return-value]


def check(holds: bool, message: str) -> None:
    """Ends the program where both sides do not agree."""
    if not holds:
        raise AssertionError(message)


COMPARISONS = {"routed": routed, "masks": masks, "spans": spans}


def seconds_of(step: Step) -> float:
    """One turn."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(name: str, scale: float, repeats: int) -> dict[str, Any]:
    """All figures of one comparison."""
    comparison = COMPARISONS[name](scale)
    difference = comparison.difference()
    turns = []
    for turn in range(repeats):
        sides = [("ours", comparison.ours), ("plain", comparison.plain)]
        turns.append({side: seconds_of(step) for side, step in (sides if turn % 2 == 0 else sides[::-1])})
    ratios = [turn["plain"] / turn["ours"] for turn in turns]
    return {
        "title": comparison.title,
        "difference": difference,
        "seconds": {side: median(turn[side] for turn in turns) for side in ("ours", "plain")},
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
    seconds = figures["seconds"]
    return (
        f"{figures['title']}\n"
        f"  {figures['ratio']:.2f} times as fast (from {figures['ratio_min']:.2f} to {figures['ratio_max']:.2f}"
        f" over {figures['repeats']} turns): {seconds['ours']:.4f} s and {seconds['plain']:.4f} s\n"
        f"  {figures['difference']}\n"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", metavar="comparison", help=f"of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the published sizes, for a quick look")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    unknown = set(options.comparisons) - set(COMPARISONS)
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = []
    for name in options.comparisons or COMPARISONS:
        figures.append(measure(name, options.scale, options.repeats))
        sys.stdout.write(described(figures[-1]))
        sys.stdout.flush()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
