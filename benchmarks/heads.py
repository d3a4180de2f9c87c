"""How fast a diffusion head samples beside the official arithmetic, written out plainly.

    python -m benchmarks.heads                                # MAR-L's head: 256 tokens, 100 steps, guided, float32 and bfloat16
    python -m benchmarks.heads float32 --repeats 3
    MMBLOCKS_BENCHMARK_SCALE=0.05 python -m benchmarks.heads --repeats 2       # a quick look

Both sides have the same weights, states and draws; what they sample is compared before anything is timed.
"""

import math
import os
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import MARDiffusionHead
from mmblocks.layers.adaln_mlp import AdaLNMLP

SCALE = float(os.environ.get("MMBLOCKS_BENCHMARK_SCALE", "1"))
WIDTH, DIM, CHANNELS, BLOCKS = max(64, round(1280 * SCALE)), max(32, round(1024 * SCALE)), 16, 8
TOKENS, STEPS, GUIDANCE = max(8, round(256 * SCALE)), max(4, round(100 * SCALE)), 3.0


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
    """Guided ancestral sampling as the official code has it: both halves are walked, and tables are read row by row."""
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
    torch.manual_seed(0)
    head = MARDiffusionHead(dim=DIM, token_dim=CHANNELS, width=WIDTH, num_blocks=BLOCKS, steps=STEPS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = head.to(device=device, dtype=dtype).eval()
    z = torch.randn(2 * TOKENS, DIM, device=device, dtype=dtype)
    noise, step_noise = torch.randn(TOKENS, CHANNELS, device=device), torch.randn(STEPS, TOKENS, CHANNELS, device=device)
    states, others = z.chunk(2)

    def ours() -> Tensor:
        return head.sample(states, unconditional=others, guidance=GUIDANCE, noise=noise, step_noise=step_noise)

    plain = torch.no_grad()(partial(plain_sample, head, z, noise, step_noise))

    def difference() -> str:
        got, wanted = ours(), plain()
        off = float((got - wanted).abs().max() / wanted.abs().max())
        check(off < (1e-4 if dtype == torch.float32 else 0.1), f"samples differ by {off:.1e} of the greatest value")
        return f"samples differ by at most {off:.0e} of the greatest value"

    def prepared(step: Step) -> Step:
        return step

    name = str(dtype).removeprefix("torch.")
    title = f"a MAR-L head, {TOKENS} tokens, {STEPS} steps, guided, {name}"
    sides = {"ours": partial(prepared, ours), "official arithmetic, plainly": partial(prepared, plain)}
    return Comparison(title, sides, difference, target=1.0 if dtype == torch.float32 else 1.3, memory=False)


if __name__ == "__main__":
    kinds = {name: partial(sampling, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")}
    main("benchmarks.heads", kinds, __doc__)
