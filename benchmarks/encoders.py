"""Encoders beside timm and open_clip, the contrastive loss beside open_clip's, and loading.

    python -m benchmarks.encoders                          # all comparisons
    python -m benchmarks.encoders contrastive loading      # some of them
    python -m benchmarks.encoders base --repeats 9 --json figures.jsonl

Both sides have the same random weights and inputs.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import Comparison, Step, check, main

TOWERS = {
    "base": ("EVA02_CLIP_B_psz16_s8B", "eva02_base_patch16_clip_224", "EVA02-B-16"),
    "large": ("EVA02_CLIP_L_psz14_s4B", "eva02_large_patch14_clip_224", "EVA02-L-14"),
}
BATCH = {"base": 8, "large": 2}
"""Images of a tower's batch."""

LAYERS = 4
"""Of the tower that is loaded: EVA-CLIP-8B has 32, all alike."""

LOCAL, GLOBAL, WIDTH = 2048, 16384, 512
"""Pairs of one process, of all, and the width of their embeddings."""


def tower(name: str, device: str) -> Comparison:
    """The image tower, ours and those of timm and open_clip, and ours in half precision and compiled."""
    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments
    from mmblocks.encoders.eva_clip_vision import EVACLIPVision
    from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, normalise

    ours_name, timm_name, clip_name = TOWERS[name]
    arguments = eva_clip_arguments(ours_name)["vision"]
    pixels = torch.rand(BATCH[name], 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)

    @cache
    def ours() -> Any:
        torch.manual_seed(0)
        model = EVACLIPVision(**arguments).eval().to(device)
        torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.02)  # it begins at almost nothing
        return model

    @cache
    def of_timm() -> Any:
        import timm

        model = timm.create_model(timm_name, num_classes=arguments["embed_dim"]).eval().to(device)
        model.load_state_dict({key.removeprefix("tower.vit."): tensor for key, tensor in ours().state_dict().items()})
        return model

    @cache
    def of_open_clip() -> Any:
        import open_clip  # type: ignore[import-untyped]

        model = open_clip.create_model(clip_name, load_weights=False, pretrained_text=False).visual.eval().to(device)
        model.trunk.load_state_dict(of_timm().state_dict())
        return model

    def half() -> Any:
        model = EVACLIPVision(**arguments).eval().to(device, torch.bfloat16)
        model.load_state_dict(ours().state_dict())
        return model.embed

    def normalised(model: Any) -> Step:
        return lambda: model(normalise(pixels, CLIP_MEAN, CLIP_STD))  # all begin with pixels in [0, 1]

    def step_of(make: Callable[[], Any]) -> Callable[[], Step]:
        return lambda: torch.inference_mode()(make())

    sides: dict[str, Callable[[], Step]] = {
        "ours": step_of(lambda: partial(ours().embed, pixels)),
        "timm": step_of(lambda: normalised(of_timm())),
        "open_clip": step_of(lambda: normalised(of_open_clip())),
    }
    if name == "base" or device == "cuda":  # on a CPU the large tower takes minutes in half precision
        sides["ours in bfloat16"] = step_of(lambda: partial(half(), pixels))
        sides["ours compiled"] = step_of(lambda: partial(torch.compile(ours().embed), pixels))

    def difference() -> str:
        wanted = sides["timm"]()()
        worst = {side: float((sides[side]()() - wanted).abs().max()) for side in sides if side not in ("timm", "ours compiled")}
        largest = max(float(wanted.abs().max()), 1.0)
        for side, off in worst.items():
            check(off < (0.05 if "bfloat16" in side else 1e-4) * largest, f"{side} differs from timm by {off}")
        return "embeddings differ from timm's by at most " + ", ".join(f"{off:.1e} ({side})" for side, off in worst.items())

    return Comparison(f"{ours_name}: {BATCH[name]} images", sides, difference, target=0.98, memory=False)


def contrastive(device: str, gathered: bool = False) -> Comparison:
    """The loss of one of several processes, its own rows against the columns of all, and its gradients.

    CLIP's local loss gives no gradient to what other processes sent; gathered, it is sent back.
    """
    local, total = LOCAL, GLOBAL

    def inputs() -> list[Tensor]:
        source = torch.Generator().manual_seed(0)
        tensors = [normalize(torch.randn(count, WIDTH, generator=source), dim=-1) for count in (local, local, total, total)]
        image, text, images, texts = tensors = [tensor.to(device) for tensor in tensors]
        images[:local], texts[:local] = image, text
        for tensor in (image, text, *((images, texts) if gathered else ())):
            tensor.requires_grad_()
        return [*tensors, torch.tensor(14.0, requires_grad=True, device=device)]

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

    def difference() -> str:
        worst = max(float((mine - other).detach().abs().max()) for mine, other in zip(ours()(), theirs()(), strict=True))
        check(worst < 1e-5, f"loss or gradients differ by {worst}")
        return f"loss and gradients differ by at most {worst:.1e}"

    columns = "columns with gradients" if gathered else "columns"
    title = f"contrastive loss and gradients: {LOCAL} rows, {GLOBAL} {columns}, width {WIDTH}"
    return Comparison(title, {"ours": ours, "open_clip": theirs}, difference, target=0.9)


def loading(device: str) -> Comparison:
    """EVA-CLIP-8B's image tower with fewer layers, from a folder of shards, with every value read."""
    from mmblocks.encoders.eva_clip_vision import EVACLIPVision

    def ours() -> Step:
        import timm.models.eva  # noqa: F401  imported at first use

        folder = mkdtemp()
        # In a process of its own: what writing holds is not counted.
        code = f"from benchmarks.encoders import write_shards; write_shards({folder!r})"
        subprocess.run([sys.executable, "-c", code], check=True)

        def step() -> None:
            vision = EVACLIPVision.from_pretrained(folder, device=device)
            for tensor in vision.state_dict().values():
                tensor.sum()  # files are mapped: read now

        return step

    size = sum(tensor.nbytes for tensor in _tower_8b().state_dict().values())
    return Comparison(
        f"EVA-CLIP-8B's image tower of {LAYERS} layers in half precision, loaded from 4 shards",
        {"ours": ours},
        lambda: f"the weights are {size / 2**20:.0f} MiB; 1.1 times that is the limit we set ourselves",
    )


def _tower_8b() -> Any:
    """On the meta device."""
    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments
    from mmblocks.encoders.eva_clip_vision import EVACLIPVision

    arguments = eva_clip_arguments("EVA_CLIP_8B_psz14_s9B")["vision"]
    arguments["tower"]["num_layers"] = LAYERS
    with torch.device("meta"):
        return EVACLIPVision(**arguments).half()


def write_shards(folder: str) -> None:
    """An image tower of EVA-CLIP-8B's widths, with random values."""
    vision = _tower_8b().to_empty(device="cpu")
    for parameter in vision.parameters():
        torch.nn.init.uniform_(parameter)
    size = sum(tensor.nbytes for tensor in vision.state_dict().values())
    vision.save_pretrained(folder, max_shard_size=size // 4)


def building(device: str) -> Comparison:
    """EVA-CLIP-18B without values."""
    from mmblocks.encoders.eva_clip import EVACLIP
    from mmblocks.encoders.eva_clip_presets import eva_clip_arguments

    def build(name: str) -> None:
        with torch.device("meta"):
            EVACLIP(**eva_clip_arguments(name))

    def ours() -> Step:
        build("EVA02_CLIP_B_psz16_s8B")  # what is imported at first use is not counted
        return partial(build, "EVA_CLIP_18B_psz14_s6B")

    return Comparison("EVA-CLIP-18B built on the meta device", {"ours": ours}, lambda: "5 s is the limit we set ourselves")


COMPARISONS = {
    "base": partial(tower, "base"),
    "large": partial(tower, "large"),
    "contrastive": contrastive,
    "contrastive_gathered": partial(contrastive, gathered=True),
    "loading": loading,
    "building": building,
}

if __name__ == "__main__":
    main("benchmarks.encoders", COMPARISONS, __doc__)
