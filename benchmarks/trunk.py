"""A trunk's layers and masks beside the plain ways to the same numbers.

python -m benchmarks.trunk                                # all comparisons, at EVEv2's widths: 8 GiB of memory
python -m benchmarks.trunk routed_narrow masks            # some of them
python -m benchmarks.trunk --json figures.jsonl
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from benchmarks.measure import Comparison, Step, check, main
from mmblocks.layers.attention.attend import attend, interval_block_mask, interval_spans
from mmblocks.sequence.masks import Causal, Dense, Intervals, densify, intervals
from mmblocks.sequence.positions import RotaryTable, rotary_table, rotate_half_split
from mmblocks.sequence.tokens import NO_SPAN, Modality, TokenTable
from mmblocks.trunks.routed.routed_decoder import RoutedDecoder

LENGTH = 8192
"""Tokens of the row whose mask is built and used."""


def routed(scale: float, device: str) -> Comparison:
    """A layer of EVEv2, forward and backward, half of the tokens visual; against both experts for every token, then mixed."""
    heads = max(2, round(28 * scale)) // 2 * 2
    width, inner, tokens = 128 * heads, max(128, round(18944 * scale)), max(32, round(512 * scale**0.5))
    kv_heads = 4 if heads % 4 == 0 else 2
    rotary = rotary_table(torch.arange(tokens, device=device)[None], 128, 1e6)

    @cache
    def parts() -> tuple[Any, Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        trunk = RoutedDecoder(
            dim=width,
            num_layers=1,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=128,
            mlp_dim=inner,
            qkv_bias=True,
            rope_theta=1e6,
        ).to(device)
        x, upstream = torch.randn(1, tokens, width, device=device).requires_grad_(), torch.randn(1, tokens, width, device=device)
        vision = torch.zeros(1, tokens, dtype=torch.long, device=device)
        vision[:, tokens // 4 : tokens // 4 + tokens // 2] = 1
        return trunk, x, upstream, vision

    def ours() -> Tensor:
        trunk, x, upstream, vision = parts()
        context = trunk.context(x, TokenTable.text(1, tokens, device=device)._replace(modality=vision), mask=Causal())
        out = context.in_order(trunk.run(context.as_rows(x), context))
        out.backward(upstream)
        return out

    def plain() -> Tensor:
        trunk, x, upstream, vision = parts()
        out = computed_twice(trunk.layers[0], x, vision[..., None].float(), rotary)
        out.backward(upstream)
        return out

    def cleared(step: Step) -> Step:
        def run() -> Any:
            trunk, x, *_ = parts()
            trunk.zero_grad()
            x.grad = None
            return step()

        return run

    def difference() -> str:
        found = []
        for step in (ours, plain):
            out = cleared(step)().detach()
            trunk, x, *_ = parts()
            found.append([out, x.grad, *(parameter.grad for parameter in trunk.layers.parameters())])
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
        check(worst < 1e-4, f"relative difference {worst}")
        return f"output and all gradients differ by at most {worst:.1e} of their norm"

    title = f"routed layer, width {width}, mlp {inner}, {tokens} tokens, forward and backward"
    sides: dict[str, Callable[[], Step]] = {"routed": lambda: cleared(ours), "both for all": lambda: cleared(plain)}
    return Comparison(title, sides, difference, target=1.6, memory=False)


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


def packed_table(length: int, device: str) -> TokenTable:
    """One row of packed documents: text, an image of 256 tokens that see each other, text; 1024 tokens a document."""
    table = TokenTable.text(1, length, device=device)
    column = torch.arange(length, device=device)
    place = column % 1024
    image = (place >= 256) & (place < 512)
    order = torch.where(image, 256, place)
    return table._replace(
        document=(column // 1024)[None],
        modality=torch.where(image, Modality.VISION.value, Modality.TEXT.value)[None],
        span=torch.where(image, 0, NO_SPAN)[None],
        order=order[None],
    )


def masks(device: str) -> Comparison:
    """A block mask of packed text and images, from the table; against create_block_mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = LENGTH
    table = packed_table(length, device)
    document, order = table.document[0], table.order[0]

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (document[q] == document[k]) & (order[k] <= order[q])

    def ours() -> Any:
        return interval_block_mask(lowered(table), length)

    def plain() -> Any:
        return create_block_mask(sees, 1, None, length, length, device=device)

    def difference() -> str:
        check(torch.equal(ours().to_dense(), plain().to_dense()), "tiles differ")
        return "the same tiles"

    sides: dict[str, Callable[[], Step]] = {"from intervals": lambda: ours, "create_block_mask": lambda: plain}
    return Comparison(f"block mask of packed text and images, L={length}", sides, difference, target=100)


def spans(device: str) -> Comparison:
    """Attention of packed text and images, one call for each span; against one call with a boolean mask."""
    length = LENGTH
    mask = lowered(packed_table(length, device))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 128, generator=generator).to(device) for heads in (8, 2, 2))
    dense, per_span = Dense(densify(mask, length, length, device)), interval_spans(mask)

    def ours() -> Tensor:
        return attend(query, key, value, per_span)

    def plain() -> Tensor:
        return attend(query, key, value, dense)

    def difference() -> str:
        worst = float((ours() - plain()).abs().max())
        check(worst < 1e-4, f"difference {worst}")
        return f"outputs differ by at most {worst:.1e}"

    sides: dict[str, Callable[[], Step]] = {"span by span": lambda: ours, "dense mask": lambda: plain}
    return Comparison(f"attention of packed text and images, L={length}, 8 heads of 128", sides, difference, target=1.5)


def lowered(table: TokenTable) -> Intervals:
    """The table's rule as intervals, which it is known to have."""
    found = intervals(table)
    check(found is not None, "the table has no intervals")
    return found  # type: ignore[return-value]


COMPARISONS = {
    "routed": partial(routed, 1.0),
    "routed_narrow": partial(routed, 0.25),
    "masks": masks,
    "spans": spans,
}

if __name__ == "__main__":
    main("benchmarks.trunk", COMPARISONS, __doc__)
