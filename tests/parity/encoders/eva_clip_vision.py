"""EVA-CLIP's image tower: states of all blocks, embeddings, patch dropout, and loading for another size of image."""

from typing import Any

from torch import Tensor

from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.layers.towers.eva import EvaTower
from tests.parity.cases import Case

EVA = [
    "EVA01_CLIP_g_14_plus_psz14_s11B",
    "EVA01_CLIP_g_14_psz14_s11B",
    "EVA02_CLIP_E_psz14_plus_s9B",
    "EVA02_CLIP_E_psz14_s4B",
    "EVA_CLIP_18B_psz14_s6B.fp16",
    "EVA_CLIP_8B_psz14_plus_s0.6B",
    "EVA_CLIP_8B_psz14_s9B",
]
EVA02 = ["EVA02_CLIP_B_psz16_s8B", "EVA02_CLIP_L_336_psz14_s6B", "EVA02_CLIP_L_psz14_s4B"]
MANIFESTS = {name: [(EVACLIPVision, layout)] for layout, names in (("eva-clip", EVA), ("eva02-clip", EVA02)) for name in names}
MANIFESTS["EVA_CLIP_8B_psz14_s9B"].append((EvaTower, "eva-clip"))
MANIFESTS["EVA02_CLIP_B_psz16_s8B"].append((EvaTower, "eva02-clip"))


def run(case: Case) -> None:
    wanted = case.config["vision_cfg"]
    given = case.config.get("vision_cfg_checkpoint", wanted)
    vision = case.load(EVACLIPVision, of_the_model(case) | {"vision_cfg": given})
    resized = vision
    if given != wanted:
        changed = {name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name)}
        assert changed <= {"image_size", "patch_size"}, "upstream's loader resizes; nothing else of a checkpoint can change"
        resized = vision.resized(pair(wanted["image_size"]), patch_size=wanted["patch_size"])
    resized.train("patch_indices_keep" in case.named("in."))  # nothing else is drawn
    image = case.io["in.image"].requires_grad_()
    results = outputs(resized, image, case.io.get("in.patch_indices_keep"))
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
    losses = {"mean_square": results["features"].square().mean()}
    for name in case.named("loss."):
        case.check(f"loss.{name}", losses[name])
    if case.named("grad."):
        losses["mean_square"].backward()
        # Names depend on the layout alone, which the sizes of the file decide.
        case.check_gradients(resized, case.layouts(vision)[0].name, image=image, **{"@image": image})


def of_the_model(case: Case) -> dict[str, Any]:
    """The case's config without its notes and what it says of a loss."""
    return {name: value for name, value in case.config.items() if name not in ("derived", "smoothing", "vision_cfg_checkpoint")}


def outputs(vision: EVACLIPVision, image: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
    """Everything a case may hold; the images are normalised already, so that they go to the tower."""
    states = vision.tower.states(image, range(len(vision.tower.vit.blocks)), keep=keep)
    results = {f"block_{number}": state for number, state in enumerate(states)}
    tokens = vision.tower(image, keep=keep)
    results |= {"tokens": tokens, "tokens_normed": vision.norm(tokens), "features": vision.pool(tokens)}
    results |= {"pos_embed": vision.tower.vit.pos_embed, "patch_embed_weight": vision.tower.vit.patch_embed.proj.weight}
    if vision.tower.vit.rope is not None:
        results["rope_sin"], results["rope_cos"] = vision.tower.vit.rope.get_embed().chunk(2, dim=-1)
    return results


def pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
