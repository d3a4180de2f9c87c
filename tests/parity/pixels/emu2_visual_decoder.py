"""Emu2's visual decoder: embeddings to pixels through a U-Net in the latents of SDXL's autoencoder."""

import torch

from mmblocks.layers import DiffusersSampler
from mmblocks.pixels import ConditionalUNet, DiffusionDecoder
from mmblocks.tokenizers import DiffusersAutoencoder
from tests.parity.cases import Case

MANIFESTS = {"emu2_gen_unet": [(ConditionalUNet, "diffusers")]}


def run(case: Case) -> None:
    config = case.config
    unet = case.load(ConditionalUNet, config=config["unet"], layout="emu2-gen")
    (layout,) = DiffusersAutoencoder.layouts
    arguments = layout.arguments({"_class_name": "AutoencoderKL", **config["vae"]})
    autoencoder = DiffusersAutoencoder(**arguments).eval()
    weights = {name.removeprefix("vae."): value for name, value in case.weights.items() if name.startswith("vae.")}
    autoencoder.load_state_dict(dict(layout.convert(weights, autoencoder.config)))
    sampler = DiffusersSampler.from_published(config["scheduler"], num_steps=config["steps"])
    decoder = DiffusionDecoder(unet=unet, autoencoder=autoencoder, sampler=sampler)

    calls: list[tuple[torch.Tensor, ...]] = []
    unet.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    asked = {
        "size": (config["height"], config["width"]),
        "guidance": config["guidance_scale"],
        "noise": case.io["in.noise"],
        "generator": None,
    }
    nothing = case.io.get("in.null_embeds")
    case.check("out.latents", decoder.latents(case.io["in.cond_embeds"], nothing, **asked))
    case.check("out.image", decoder(case.io["in.cond_embeds"], nothing, **asked).movedim(1, -1))
    case.check("out.timesteps", torch.stack([time for _, time, *_ in calls[: config["steps"]]]))
    latents, _, conditions, sizes = calls[0]
    case.check("out.unet_in_0", latents)
    case.check("out.encoder_hidden_states", conditions)
    case.check("out.text_embeds", conditions.mean(dim=1))
    case.check("out.time_ids", sizes.flatten())
    case.check("out.unet_in_last", calls[config["steps"] - 1][0])
