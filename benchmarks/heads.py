"""How fast images of continuous tokens are sampled, beside the same arithmetic without what we save.

    python -m benchmarks.heads                                # everything
    python -m benchmarks.heads float32 bfloat16 --repeats 3   # MAR-L's head beside the official arithmetic, written out plainly
    python -m benchmarks.heads behind_0 behind_1024 growth    # an Orthus-like model, token by token
    python -m benchmarks.heads acdit omnigen                  # with their caches and without
    MMBLOCKS_BENCHMARK_SCALE=0.05 python -m benchmarks.heads --repeats 2       # a quick look

All sides have the same weights, states and draws; what they sample is compared before anything is timed. On a CPU MAR's head takes
a part of the 100 steps, as the titles say.
"""

import math
import os
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from benchmarks.measure import Comparison, Step, check, main
from mmblocks.heads import MARDiffusionHead
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.models import OmniGen, Orthus
from mmblocks.models.acdit.model import ACDiT
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache

SCALE = float(os.environ.get("MMBLOCKS_BENCHMARK_SCALE", "1"))
WIDTH, DIM, CHANNELS, BLOCKS = max(64, round(1280 * SCALE)), max(32, round(1024 * SCALE)), 16, 8
TOKENS, GUIDANCE = max(8, round(256 * SCALE)), 3.0
STEPS = {"cuda": {torch.float32: 100, torch.bfloat16: 100}, "cpu": {torch.float32: 4, torch.bfloat16: 2}}
"""Of MAR's head. A CPU without products in bfloat16 takes minutes for a whole image."""

CODES, CODE_DIM = max(64, round(8192 * SCALE)), 256
"""Orthus's codes, of which an embedding is mixed."""

NEW_TOKENS = 4
"""Image tokens that are written in one step of a comparison."""


def scaled(count: int, multiple: int = 1) -> int:
    """At the scale asked for, in whole multiples."""
    return max(1, round(count * SCALE / multiple)) * multiple


def stirred(model: torch.nn.Module) -> None:
    """Weights that begin as zeros are moved away from it, for all of them to count."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def prepared(step: Step) -> Step:
    """A side that has nothing to prepare."""
    return step


def distance(ours: Tensor, theirs: Tensor, accepted: float) -> str:
    """By what two samples differ."""
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    check(off < accepted, f"samples differ by {off:.1e} of the greatest value")
    return f"samples differ by at most {off:.0e} of the greatest value"


def plain_net(net: AdaLNMLP, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """The network as the official code runs it: each row's time by itself, and a SiLU of the condition in every layer."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=x.device) / 128)
    angle = t[:, None].float() * frequencies
    time = net.time_embedding.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(x.dtype))
    condition = time + net.condition(z)
    x = net.input(x)
    for block in net.blocks:
        shift, scale, gate = linear(silu(condition), block.modulation.weight, block.modulation.bias).chunk(3, dim=-1)
        x = x + gate * block.mlp(block.norm(x) * (1 + scale) + shift)
    shift, scale = linear(silu(condition), net.final_modulation.weight, net.final_modulation.bias).chunk(2, dim=-1)
    return net.output(layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def plain_sample(head: MARDiffusionHead, z: Tensor, noise: Tensor, step_noise: Tensor) -> Tensor:
    """Guided ancestral sampling as the official code has it: both halves are sampled, and tables are read row by row."""
    posterior = head.sampler.posterior(head.path)
    data, noised, clean, amount, small, large = (column.float().to(z.device) for column in posterior[2:])
    x, rows = torch.cat([noise, noise]), len(z)
    for step, place in enumerate(reversed(range(len(posterior.times)))):
        at = torch.full((rows,), place, device=z.device)
        half = x[: rows // 2]
        output = plain_net(head.net, torch.cat([half, half]).to(z.dtype), posterior.times.to(z.device)[at], z)
        predicted, share = output.float().chunk(2, dim=-1)
        conditional, unconditional = predicted.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        predicted = torch.cat([guided, guided])

        def of(table: Tensor, at: Tensor = at, x: Tensor = x) -> Tensor:
            return table[at][:, None].expand(x.shape)

        fraction = (share + 1) / 2
        logvar = fraction * of(large) + (1 - fraction) * of(small)
        found = of(clean) * x - of(amount) * predicted
        mean = of(data) * found + of(noised) * x
        draws = torch.cat([step_noise[step], step_noise[step]])
        x = mean + (at != 0).float()[:, None] * torch.exp(0.5 * logvar) * draws
    return x[: rows // 2]


def sampling(device: str, dtype: torch.dtype) -> Comparison:
    """MAR-L's head, one image, guided."""
    steps = STEPS[device][dtype]
    torch.manual_seed(0)
    head = MARDiffusionHead(dim=DIM, token_dim=CHANNELS, width=WIDTH, num_blocks=BLOCKS, steps=steps)
    stirred(head)
    head = head.to(device=device, dtype=dtype).eval()
    z = torch.randn(2 * TOKENS, DIM, device=device, dtype=dtype)
    noise, step_noise = torch.randn(TOKENS, CHANNELS, device=device), torch.randn(steps, TOKENS, CHANNELS, device=device)
    states, others = z.chunk(2)

    def ours() -> Tensor:
        return head.sample(states, unconditional=others, guidance=GUIDANCE, noise=noise, step_noise=step_noise)

    plain = torch.no_grad()(partial(plain_sample, head, z, noise, step_noise))
    name = str(dtype).removeprefix("torch.")
    title = f"a MAR-L head, {TOKENS} tokens, {'' if steps == 100 else f'{steps} steps in place of '}100 steps, guided, {name}"
    sides = {"ours": partial(prepared, ours), "official arithmetic, plainly": partial(prepared, plain)}
    accepted = 1e-4 if dtype == torch.float32 else 0.1
    target = 1.0 if dtype == torch.float32 else 1.3
    return Comparison(title, sides, lambda: distance(ours(), plain(), accepted), target=target, memory=False)


@cache
def orthus(device: str) -> Orthus:
    """Orthus's codes and latents, under a narrow and shallow trunk."""
    sizes = {"dim": scaled(512, 64), "mlp_dim": scaled(1408), "num_layers": 4, "num_heads": 4}
    head = {"head_width": scaled(512), "num_head_blocks": 1, "num_steps": 5}
    model = Orthus(vocab_size=CODES + 8, num_codes=CODES, latent_dim=CODE_DIM, **sizes, **head)
    return model.to(device).eval()


@torch.no_grad()
def interleaved(device: str, earlier: int) -> tuple[Step, Step]:
    """Steps that write a few image tokens behind earlier ones: ours, and with every past soft embedding mixed again."""
    model = orthus(device)
    embed, trunk, head = model.inputs["latents"], model.trunk, model.outputs["latents"]
    generator = torch.Generator(device).manual_seed(0)
    read = torch.randn(earlier + 1, CODE_DIM, device=device, generator=generator)
    noise = torch.randn(NEW_TOKENS, 1, CODE_DIM, device=device, generator=generator)
    table = TokenTable.text(1, earlier + NEW_TOKENS, device)
    held: KVCache = trunk.new_cache(1, earlier + NEW_TOKENS)
    if earlier:
        trunk(embed(read[:-1])[None], table.slice(0, earlier), held)

    @torch.no_grad()
    def write(embed_last: Callable[[Tensor], Tensor]) -> Tensor:
        latents = read
        held.length = earlier  # what the call before wrote is written again
        for number in range(NEW_TOKENS):
            place = earlier + number
            hidden = trunk(embed_last(latents)[None], table.slice(place, place + 1), held)
            latents = torch.cat([latents, head.sample(hidden[:, -1], noise=noise[number])])
        return latents[-NEW_TOKENS:]

    return partial(write, lambda latents: embed(latents[-1:])), partial(write, lambda latents: embed(latents)[-1:])


def behind(device: str, earlier: int) -> Comparison:
    """What an image token costs behind so many."""
    ours, again = interleaved(device, earlier)
    title = f"{NEW_TOKENS} image tokens of an Orthus-like model behind {earlier} others, {CODES} codes"
    sides = {"ours": partial(prepared, ours), "every past soft embedding again": partial(prepared, again)}
    return Comparison(title, sides, lambda: distance(ours(), again(), 1e-4), memory=False)


def growth(device: str) -> Comparison:
    """Our own cost behind many image tokens, beside that behind none: what is left is attention."""
    many, none = (interleaved(device, earlier)[0] for earlier in (1024, 0))
    title = f"{NEW_TOKENS} image tokens of an Orthus-like model behind 1024 others"
    sides = {"behind 1024": partial(prepared, many), "behind none": partial(prepared, none)}
    return Comparison(title, sides, lambda: "1 would be a cost that does not grow; attention's does", memory=False)


def acdit(device: str) -> Comparison:
    """16 blocks of 64 tokens, one after the other."""
    torch.manual_seed(0)
    side, steps = max(4, scaled(32, 8)), 5
    sizes = {"dim": scaled(256, 64), "num_layers": 6, "num_heads": 4, "latent_dim": 16, "num_classes": 10}
    model = ACDiT(**sizes, grid=(1, side, side), block_size=64)
    stirred(model)
    model = model.to(device).eval()
    labels = torch.tensor([3], device=device)
    noise = torch.randn(model.blocks.count, 1, 64, 16, device=device)

    def sample(cached: bool) -> Tensor:
        return model.sample(labels, num_steps=steps, cached=cached, noise=noise)

    with_cache, without = (partial(sample, cached) for cached in (True, False))
    title = f"ACDiT, {model.blocks.count} blocks of 64 tokens, {steps} steps each, width {sizes['dim']}"
    sides = {"with a cache of clean blocks": partial(prepared, with_cache), "without": partial(prepared, without)}
    return Comparison(title, sides, lambda: distance(with_cache(), without(), 1e-3), memory=False)


def omnigen(device: str) -> Comparison:
    """An image from text and two images, guided by both."""
    torch.manual_seed(0)
    side, steps = scaled(32, 2), 8
    sizes = {"vocab_size": 1000, "dim": scaled(384, 64), "mlp_dim": scaled(1024), "num_layers": 6, "num_heads": 4}
    model = OmniGen(**sizes, table_size=32, base_size=32)
    stirred(model)
    model = model.to(device).eval()
    text = torch.arange(32, device=device)
    images = [torch.randn(4, side, side, device=device) for _ in range(2)]
    noise = [torch.randn(4, side, side, device=device)]
    prompts = {"prompts": [[text, *images]], "images_only": [[text[:1], *images]], "unconditional": [[text[:1]]]}

    def with_cache() -> Tensor:
        (made,) = model.sample(**prompts, num_steps=steps, noise=noise)
        return made

    def without() -> Tensor:
        x = noise[0]
        for step in range(steps):
            time = torch.full((1,), step / steps, device=device)
            c, i, u = (model(group, [x], time)[0] for group in prompts.values())
            x = x + (u + 1.6 * (i - u) + 2.5 * (c - i)) / steps
        return x

    tokens = side * side // 4
    title = f"OmniGen, {tokens} tokens from text and two images as large, three branches of guidance, {steps} steps"
    sides = {"with a cache of the prompts": partial(prepared, with_cache), "without": partial(prepared, without)}
    return Comparison(title, sides, lambda: distance(with_cache(), without(), 1e-3), memory=False)


COMPARISONS: dict[str, Callable[[str], Comparison]] = {
    "float32": partial(sampling, dtype=torch.float32),
    "bfloat16": partial(sampling, dtype=torch.bfloat16),
    **{f"behind_{count}": partial(behind, earlier=count) for count in (0, 64, 256, 1024)},
    "growth": growth,
    "acdit": acdit,
    "omnigen": omnigen,
}

if __name__ == "__main__":
    main("benchmarks.heads", COMPARISONS, __doc__)
