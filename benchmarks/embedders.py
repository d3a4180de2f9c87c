"""Embedders of ragged images beside one image at a time, and a trunk that drops tokens beside one that does not.

    python -m benchmarks.embedders                    # all comparisons
    python -m benchmarks.embedders eve1 eve2 --threads 1
    python -m benchmarks.embedders pruning --repeats 3 --json figures.jsonl

Weights are random, at the published widths on a GPU and at a quarter of them on a CPU.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check, main
from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve2 import EVE2PatchEmbedding
from mmblocks.sequence.masks import lower
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.pruned.decoder import PrunedDecoder

NUM_IMAGES = 32

NUM_LAYERS = 24
"""Of the trunk; tokens are dropped in front of the layer in the middle."""

SHARE = 0.25
"""Of the visual tokens that is left."""

TEXT, VISUAL = 64, 960
"""Tokens of a prompt."""


def pictures(step: int, device: str) -> list[Tensor]:
    """Of 3 to 16 tokens a side, each of its own size; on a GPU four times as many a side."""
    generator = torch.Generator().manual_seed(0)
    larger = 4 if device == "cuda" else 1
    sizes = torch.randint(3 * larger, 16 * larger + 1, (NUM_IMAGES, 2), generator=generator) * step
    return [torch.rand(3, *size, generator=generator).to(device) for size in sizes.tolist()]


def ragged(name: str, embedder: Any, device: str, target: float) -> Comparison:
    """Images of many sizes at once."""
    embedder = embedder.eval().to(device)
    images = pictures(embedder.token_size, device)

    @torch.no_grad()
    def together() -> Tensor:
        return embedder(images).embeds

    @torch.no_grad()
    def one_by_one() -> Tensor:
        return torch.cat([embedder([image]).embeds for image in images])

    def difference() -> str:
        worst = float((together() - one_by_one()).abs().max())
        check(worst < 1e-4, f"the tokens differ by {worst}")
        return f"{len(together())} tokens, which differ by at most {worst:.1e}"

    title = f"{name}: {NUM_IMAGES} images of different sizes at once"
    sides = {"at once": lambda: together, "one image at a time": lambda: one_by_one}
    return Comparison(title, sides, difference, target=target, memory=False)


def eve1(device: str) -> Comparison:
    """EVEv1's patch embedding layer."""
    torch.manual_seed(0)
    dim, hidden_dim = (4096, 1024) if device == "cuda" else (1024, 256)
    return ragged("EVEv1", EVE1PatchEmbedding(dim=dim, hidden_dim=hidden_dim), device, 3 if device == "cuda" else 1)


def eve2(device: str) -> Comparison:
    """EVEv2's patch embedding."""
    torch.manual_seed(0)
    dim, hidden_dim = (3584, 1024) if device == "cuda" else (896, 256)
    return ragged("EVEv2", EVE2PatchEmbedding(dim=dim, hidden_dim=hidden_dim), device, 3 if device == "cuda" else 1)


def prompt(device: str) -> TokenTable:
    """Text, a large image, text."""
    table = TokenTable.text(1, TEXT + VISUAL, device)
    here = slice(TEXT // 2, TEXT // 2 + VISUAL)
    table.modality[:, here], table.span[:, here] = Modality.VISION, 0
    return table


@cache
def trunks(device: str) -> tuple[Decoder, PrunedDecoder]:
    """One trunk, as it is and with pruning in the middle."""
    torch.manual_seed(0)
    dim = 2048 if device == "cuda" else 384
    trunk = Decoder(dim=dim, num_layers=NUM_LAYERS, num_heads=dim // 64, mlp_dim=dim * 8 // 3).eval().to(device)
    return trunk, PrunedDecoder(trunk=trunk, pruning=((NUM_LAYERS // 2, SHARE),)).eval()


def pruning(device: str) -> Comparison:
    """Prefill, cache included."""
    full, pruned = trunks(device)
    table = prompt(device)
    embeds, mask = torch.randn(1, TEXT + VISUAL, full.dim, device=device), lower(prompt("cpu"))
    flops = pruned.flops_saved(embeds, table, mask)

    def prefill(trunk: Any) -> Any:
        cache = trunk.new_cache(1, TEXT + VISUAL)
        with torch.no_grad():
            trunk(embeds, table, cache, mask=mask)
        return cache

    def step(trunk: Any) -> Step:
        return lambda: prefill(trunk)

    def difference() -> str:
        less, more = prefill(pruned).num_bytes, prefill(full).num_bytes
        left = TEXT + int(VISUAL * SHARE)
        expected = more * (1 + left / (TEXT + VISUAL)) / 2
        check(less == expected, f"the cache holds {less} bytes; {expected} were expected")
        counted = f"{flops.full / 1e9:.1f} and {flops.pruned / 1e9:.1f} GFLOP promise {flops.full / flops.pruned:.2f} times"
        return f"{counted}; the cache takes {less / 2**20:.1f} MiB instead of {more / 2**20:.1f}"

    title = f"prefill of {TEXT + VISUAL} tokens through {NUM_LAYERS} layers, dropping {1 - SHARE:.0%} of {VISUAL} in the middle"
    sides = {"pruned": lambda: step(pruned), "the whole row": lambda: step(full)}
    return Comparison(title, sides, difference, target=round(0.8 * flops.full / flops.pruned, 2), memory=False)


COMPARISONS = {"eve1": eve1, "eve2": eve2, "pruning": pruning}

if __name__ == "__main__":
    main("benchmarks.embedders", COMPARISONS, __doc__)
