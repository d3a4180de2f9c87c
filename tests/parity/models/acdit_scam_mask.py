"""ACDiT: skip-causal masks, training pass with loss and gradients, block-wise sampling with and without a cache."""

import warnings

import torch

from mmblocks.models.acdit.model import ACDiT
from mmblocks.sequence.masks import visible
from tests.parity.cases import Case

MANIFESTS = {"acdit_h_img": [(ACDiT, "acdit")], "acdit_xl_img": [(ACDiT, "acdit")]}


def run(case: Case) -> None:
    if "sets" in case.config:
        check_masks(case)
    elif "in.clean" in case.io:
        check_training(case)
    else:
        check_sampling(case)


def check_masks(case: Case) -> None:
    for entry in case.config["sets"]:
        blocks, size = entry["ar_len_T"], entry["block_size_B"]
        row = tiny(blocks + 1, size).row  # one block more, so that all of the case's have a clean copy
        places = torch.cat([row.copies.places, row.spans.places[: blocks * size]])
        case.check(f"out.scam_T{blocks}_B{size}", visible(row.table)[0][places][:, places])
    for name in case.named("out.infer_block"):
        number, size = (int(part) for part in name.split("_B"))
        row = tiny(number + 1, size).row
        keys = torch.cat([row.copies.places, row.spans.places[-size:]])
        case.check(f"out.infer_block{name}", visible(row.table)[0][keys[-2 * size :]][:, keys])


def tiny(blocks: int, size: int) -> ACDiT:
    sizes = {"latent_dim": 2, "dim": 8, "num_layers": 1, "num_heads": 1, "num_classes": 2}
    return ACDiT(**sizes, grid=(1, blocks, size), block_size=size, square_blocks=False)


def check_training(case: Case) -> None:
    model = case.load(ACDiT)
    clean, noise, t, labels = (case.io.get(f"in.{name}") for name in ("clean", "noise", "t", "y"))
    noised = model.add_noise(clean, noise, t)
    case.check("out.noised", noised)
    case.check("out.pred", model(clean, noised, t, labels).flatten(1, 2))
    rotary, grid = model.trunk.layers[0].attention.rotary, model.blocks.positions()
    table = rotary.angles_at(grid)
    if "out.position_ids" in case.io:
        case.check("out.position_ids", grid[:, -len(rotary.widths) :].T)
    if "out.rope_cos" in case.io:
        case.check("out.rope_cos", table.cos)
        case.check("out.rope_sin", table.sin)
    loss = model.loss(clean, labels, t=t, noise=noise).mean()
    case.check("loss.total", loss)
    loss.backward()
    case.check_gradients(model, "acdit")


def check_sampling(case: Case) -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    sampling = ("cfg", "num_inference_steps", "scheduler")
    model = case.load(ACDiT, {name: value for name, value in case.config.items() if name not in sampling})
    scheduler = DPMSolverMultistepScheduler.from_config(DDIMScheduler().config)
    options = {"num_steps": case.config["num_inference_steps"], "guidance": case.config.get("cfg", 1.0), "scheduler": scheduler}
    noise = case.io["in.block_noise"].squeeze(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' use of numpy
        for cached in (True, False):
            case.check("out.latents", model.sample(case.io["in.y"], noise=noise, cached=cached, **options))
    case.check("out.timesteps", scheduler.timesteps)
