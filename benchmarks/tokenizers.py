"""Tokenizers and their quantizers beside the libraries that people use today, and at sizes that need a memory budget.

    python -m benchmarks.tokenizers                           # all comparisons, but those of large inputs
    python -m benchmarks.tokenizers nearest_narrow ema        # some of them
    python -m benchmarks.tokenizers emu3_image --repeats 3 --json figures.jsonl
    python -m benchmarks.tokenizers emu3_2048_encode emu3_2048_decode emu3_clip magvit2_clip
    python -m benchmarks.tokenizers emu3_stripes_encode emu3_stripes_decode --repeats 3

Weights are random, the same on both sides, at the published widths.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.measure import Comparison, Step, check, main
from mmblocks.tokenizers.conv.stripes import set_memory_budget
from mmblocks.tokenizers.emu3.tokenizer import Emu3VQ

MARGIN = 1e-5
"""In squared distance, relative to the features' variance: a code that is nearer by less may differ by rounding."""


EMU3_MAP = 256 * torch.float32.itemsize
"""Bytes a pixel of one map of Emu3's finest level: with all its pixels, a good memory budget."""

LIMIT = "8 GiB in all is the limit we set ourselves"


def gaussian(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """The same numbers in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def picture(size: int, device: str, frames: int = 0) -> Tensor:
    """Large shapes and a little noise; a clip of them if frames are given."""
    generator = torch.Generator().manual_seed(0)
    shapes = interpolate(torch.rand(max(frames, 1), 3, 12, 12, generator=generator), size=(size, size), mode="bicubic")
    pixels = (shapes + 0.05 * torch.randn(shapes.shape, generator=generator)).clamp(0, 1).to(device)
    return pixels.transpose(0, 1)[None] if frames else pixels


@torch.no_grad()
def emu3(device: str, channels: int = 256) -> Any:
    """The published widths; weights under which a picture is not lost in the biases, and codes where its features are."""
    torch.manual_seed(0)
    tokenizer: Any = Emu3VQ(channels=channels).eval().to(device)
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    features = tokenizer.features(picture(64, device)).flatten(0, -2)
    tokenizer.bottleneck.codes.normal_().mul_(2 * features.std(dim=0)).add_(features.mean(dim=0))
    return tokenizer


def transformers_emu3(tokenizer: Any, device: str) -> Any:
    """transformers' model of the same weights."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    channels = tokenizer.config["channels"]
    (layout,) = (layout for layout in Emu3VQ.layouts if layout.name == "emu3-transformers")
    model: Any = Emu3VQVAE(Emu3VQVAEConfig(base_channels=channels, hidden_size=4 * channels)).eval().to(device)
    model.load_state_dict(dict(layout.convert(tokenizer.state_dict(), tokenizer.config, to="theirs")))
    return model


def emu3_image(device: str) -> Comparison:
    """An image to codes and back."""
    pixels = picture(256, device)
    normalised, sizes = pixels * 2 - 1, torch.tensor([pixels.shape[2:]])

    def ours() -> Step:
        tokenizer = emu3(device)
        return torch.no_grad()(lambda: (ids := tokenizer.encode(pixels).ids, tokenizer.decoder(tokenizer.lookup(ids))))

    def theirs() -> Step:
        model = transformers_emu3(emu3(device), device)
        return torch.no_grad()(lambda: (ids := model.encode(normalised, sizes).image_tokens[0][None], model.decode(ids)))

    @torch.no_grad()
    def difference() -> str:
        (ids, decoded), (other_ids, other_decoded) = ours()(), theirs()()
        differs = (ids != other_ids).nonzero(as_tuple=True)
        if not len(differs[0]):
            return f"all {ids.numel()} ids are equal, pixels differ by at most {float((decoded - other_decoded).abs().max()):.1e}"
        tokenizer = emu3(device)
        features = tokenizer.features(pixels)
        mine, other = ((features - tokenizer.lookup(found)).square().sum(-1)[differs] for found in (ids, other_ids))
        gap = float((mine - other).abs().max() / features.flatten(0, -2).var(dim=0).sum())
        check(gap <= MARGIN, f"{len(differs[0])} codes differ beyond rounding: by {gap} of the features' variance")
        return f"{len(differs[0])} of {ids.numel()} ids differ, by rounding"

    title = "Emu3: encode and decode one image of 256 x 256, float32"
    return Comparison(title, {"ours": ours, "transformers": theirs}, difference, target=2.5)


def emu3_half(device: str) -> Comparison:
    """Decoding in bfloat16, channels last, beside float32."""
    pixels = picture(256, device)

    @cache
    def parts() -> tuple[Any, Any, Tensor]:
        tokenizer = emu3(device)
        half = copy.deepcopy(tokenizer).bfloat16()
        for part in (half.encoder, half.decoder):
            part.spatial.to(memory_format=torch.channels_last)
        return tokenizer, half, tokenizer.encode(pixels).ids

    def narrow() -> Step:
        tokenizer, half, ids = parts()
        codes = tokenizer.lookup(ids).bfloat16()
        return torch.no_grad()(lambda: half.decoder(codes))

    def whole() -> Step:
        tokenizer, _, ids = parts()
        codes = tokenizer.lookup(ids)
        return torch.no_grad()(lambda: tokenizer.decoder(codes))

    @torch.no_grad()
    def difference() -> str:
        _, half, ids = parts()
        share = float((half.encode(pixels.bfloat16()).ids != ids).double().mean())
        apart = float((narrow()().float() - whole()()).abs().mean())
        arithmetic = bfloat16_arithmetic(device)
        return f"pixels differ by {apart:.4f} on average, a bfloat16 encoder changes {share:.1%} of the ids; {arithmetic}"

    title = "Emu3: decode one image of 256 x 256, bfloat16 and channels last beside float32"
    return Comparison(title, {"bfloat16": narrow, "float32": whole}, difference, target=1.8, memory=False)


def bfloat16_arithmetic(device: str) -> str:
    """What the hardware has."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return f"bfloat16 units: {', '.join(sorted(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})) or 'none'}"


def large(title: str, make: Callable[[str], Any], size: int, frames: int, budget: int | None, device: str) -> Comparison:
    """One large input, encoded and decoded."""

    def ours() -> Step:
        tokenizer = within(budget, make(device))
        pixels = picture(size, device, frames)

        @torch.no_grad()
        def step() -> None:
            decoded = tokenizer.decode(tokenizer.encode(pixels).ids)
            check(decoded.shape == pixels.shape and bool(decoded.isfinite().all()), f"decoded {tuple(decoded.shape)}")

        return step

    return Comparison(title, {"ours": ours}, lambda: LIMIT)


def emu3_encode(size: int, whole: bool, device: str) -> Comparison:
    """A large image to codes, in stripes; beside whole maps where they fit."""

    def side(budget: int | None) -> Step:
        tokenizer, pixels = within(budget, emu3(device)), picture(size, device)
        return torch.no_grad()(lambda: tokenizer.encode(pixels).ids)

    def difference(in_stripes: Step, in_whole: Step) -> str:
        ids, others = in_stripes(), in_whole()
        check(ids.shape == (1, size // 8, size // 8), f"ids of shape {tuple(ids.shape)}")
        return f"{int((ids != others).sum())} of {ids.numel()} ids differ"

    return striped(f"Emu3: encode one image of {size} x {size}", size, side, difference if whole else None)


def emu3_decode(size: int, whole: bool, device: str) -> Comparison:
    """The codes of a large image to pixels, in stripes; beside whole maps where they fit."""

    def side(budget: int | None) -> Step:
        tokenizer = within(budget, emu3(device))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(tokenizer.bottleneck.codes), (1, size // 8, size // 8), generator=generator).to(device)

        @torch.no_grad()
        def step() -> Tensor:
            pixels = tokenizer.decode(ids)
            check(pixels.shape == (1, 3, size, size) and bool(pixels.isfinite().all()), f"decoded {tuple(pixels.shape)}")
            return pixels

        return step

    def difference(in_stripes: Step, in_whole: Step) -> str:
        return f"pixels differ by at most {float((in_stripes() - in_whole()).abs().max()):.1e}"

    return striped(f"Emu3: decode one image of {size} x {size}", size, side, difference if whole else None)


def striped(
    title: str, size: int, side: Callable[[int | None], Step], difference: Callable[[Step, Step], str] | None
) -> Comparison:
    """With a budget of one map of the finest level, alone or beside none."""
    budget = EMU3_MAP * size**2
    if difference is None:
        return Comparison(title, {"ours": partial(side, budget)}, lambda: LIMIT)
    sides = {"in stripes": partial(side, budget), "whole maps": partial(side, None)}
    return Comparison(f"{title}, in stripes beside whole maps", sides, lambda: difference(side(budget), side(None)))


def within(budget: int | None, tokenizer: Any) -> Any:
    """The tokenizer, with a memory budget if there is one."""
    if budget is not None:
        set_memory_budget(tokenizer, budget)
    return tokenizer


def magvit2_video(device: str) -> Any:
    """Open-MAGVIT2's video tokenizer as published."""
    from mmblocks.tokenizers.open_magvit2.video import OpenMAGVIT2Video

    torch.manual_seed(0)
    return OpenMAGVIT2Video().eval().to(device)


def nearest(num_vectors: int, num_codes: int, dim: int, target: float, device: str) -> Comparison:
    """The search alone, against a VectorQuantize in evaluation."""

    def inputs() -> tuple[Tensor, Tensor]:
        return gaussian(num_vectors, dim, device=device), gaussian(num_codes, dim, seed=1, device=device)

    def ours() -> Step:
        from mmblocks.ops.nearest_code import nearest_code

        x, codes = inputs()
        return lambda: nearest_code(x, codes)

    def theirs() -> Step:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-untyped]

        x, codes = inputs()
        quantizer = VectorQuantize(dim=dim, codebook_size=num_codes).eval().to(device)
        quantizer.codebook = codes
        return torch.no_grad()(lambda: quantizer(x[None])[1][0])

    def difference() -> str:
        mine, other = ours()(), theirs()()
        differs = (mine != other).nonzero().flatten()
        x, codes = (value.double() for value in inputs())
        further = (x[differs] - codes[mine[differs]]).norm(dim=1) - (x[differs] - codes[other[differs]]).norm(dim=1)
        worst = float(further.max()) if len(differs) else 0.0
        check(worst < 1e-6, f"ours is further by {worst}")
        return f"{len(differs)} of {num_vectors} ids differ; in float64 ours is further by at most {worst:.1e}"

    title = f"nearest code, N={num_vectors} K={num_codes} D={dim}"
    return Comparison(title, {"ours": ours, "vector-quantize-pytorch": theirs}, difference, target)


def ema(device: str, num_vectors: int = 4096, num_codes: int = 16384, dim: int = 8) -> Comparison:
    """One training step of moving averages: forward, backward to the features, update of the codebook."""
    config = {"dim": dim, "codebook_size": num_codes, "decay": 0.99, "rotation_trick": False}

    def library() -> Any:
        from vector_quantize_pytorch import VectorQuantize

        quantizer = VectorQuantize(**config)
        for name, value in quantizer.state_dict().items():
            if name.endswith(("embed", "embed_avg")):
                value.copy_(gaussian(1, num_codes, dim, seed=1))
        return quantizer.to(device)

    def own() -> Any:
        from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer

        layout = EMAVectorQuantizer.layouts[0]
        quantizer = EMAVectorQuantizer(**layout.arguments(config)).to(device)
        quantizer.load_state_dict(dict(layout.convert(library().state_dict(), quantizer.config)))
        return quantizer

    def step_of(quantizer: Any, loss_of: Callable[[Any], Tensor]) -> Step:
        x = gaussian(1, num_vectors, dim, device=device).requires_grad_()
        return lambda: loss_of(quantizer(x)).backward()

    def ours(quantizer: Any = None) -> Step:
        return step_of(quantizer or own(), lambda latents: latents.z.mean() + latents.loss["commitment"])

    def theirs(quantizer: Any = None) -> Step:
        return step_of(quantizer or library(), lambda result: result[0].mean() + result[2].sum())

    def difference() -> str:
        mine, other = own(), library()
        ours(mine)()
        theirs(other)()
        after = dict(mine.layouts[0].convert(mine.state_dict(), mine.config, to="theirs"))
        worst = max(float((after[name].float() - value.float()).abs().max()) for name, value in other.state_dict().items())
        check(worst < 1e-4, f"the states differ by {worst}")
        return f"codes and averages after the step differ by at most {worst:.1e}"

    title = f"training step of moving averages, N={num_vectors} K={num_codes} D={dim}"
    return Comparison(title, {"ours": ours, "vector-quantize-pytorch": theirs}, difference, target=8)


def lfq(device: str, num_vectors: int = 1024, bits: int = 18) -> Comparison:
    """Both entropies of lookup-free quantization, and their gradient."""

    def own(width: int) -> tuple[Any, Tensor]:
        from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer

        quantizer = LookupFreeQuantizer(bits=(width,), first_bit="most", floor="clamp").to(device)
        return quantizer, gaussian(1, num_vectors, width, device=device)

    def ours() -> Step:
        quantizer, x = own(bits)
        x.requires_grad_()

        def step() -> None:
            losses = quantizer(x).loss
            (losses["sample_entropy"] - losses["codebook_entropy"]).backward()

        return step

    def theirs() -> Step:
        from vector_quantize_pytorch import LFQ

        quantizer, x = LFQ(dim=bits).to(device), gaussian(1, num_vectors, bits, device=device).requires_grad_()
        return lambda: quantizer(x).entropy_aux_loss.backward()

    def difference() -> str:
        from vector_quantize_pytorch import LFQ

        quantizer, x = own(12)
        losses = quantizer(x).loss
        _, terms = LFQ(dim=12).to(device)(x, return_loss_breakdown=True)
        pairs = ((losses["sample_entropy"], terms.per_sample_entropy), (losses["codebook_entropy"], terms.batch_entropy))
        worst = max(abs(float(mine - other)) for mine, other in pairs)
        check(worst < 1e-4, f"the entropies differ by {worst}")
        return f"the entropies of 12 bits differ by at most {worst:.1e}"

    title = f"lookup-free entropies and their gradient, N={num_vectors}, {bits} bits"
    return Comparison(title, {"ours": ours, "vector-quantize-pytorch": theirs}, difference, target=2.5)


COMPARISONS = {
    "emu3_image": emu3_image,
    "emu3_half": emu3_half,
    "nearest_narrow": partial(nearest, 16384, 16384, 8, 3),
    "nearest_wide": partial(nearest, 2048, 131072, 256, 2),
    "ema": ema,
    "lfq": lfq,
}

LARGE = {
    "emu3_2048_encode": partial(emu3_encode, 2048, False),
    "emu3_2048_decode": partial(emu3_decode, 2048, False),
    "emu3_stripes_encode": partial(emu3_encode, 512, True),
    "emu3_stripes_decode": partial(emu3_decode, 512, True),
    "emu3_clip": partial(large, "Emu3: encode and decode 36 frames of 256 x 256", emu3, 256, 36, 2**30),
    "magvit2_clip": partial(large, "Open-MAGVIT2: encode and decode 33 frames of 128 x 128", magvit2_video, 128, 33, None),
}

if __name__ == "__main__":
    main("benchmarks.tokenizers", COMPARISONS, __doc__, on_request=LARGE)
