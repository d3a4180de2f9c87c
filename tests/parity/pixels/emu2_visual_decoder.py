"""Emu2's visual decoder: embeddings to pixels through a U-Net in the latents of SDXL's autoencoder."""

import torch

from mmblocks.layers import DiffusersSampler
from mmblocks.models import Emu2, Emu2Gen
from mmblocks.pixels import ConditionalUNet
from mmblocks.tokenizers import DiffusersAutoencoder
from tests.parity.cases import Case

MANIFESTS = {
    "emu2_gen_unet": [(ConditionalUNet, "diffusers")],
    "emu2_gen_vae": [(DiffusersAutoencoder, "diffusers")],
}


def run(case: Case) -> None:
    config = case.config
    width, sizes = config["unet"]["cross_attention_dim"], {"num_layers": 1, "mlp_dim": 8}
    vision = {"image_size": (28, 28), "patch_size": 14, "dim": width, "num_heads": 1, **sizes}
    encoder = Emu2(vocab_size=8, dim=8, num_heads=1, num_tokens=4, frame_tokens=4, vision=vision, **sizes)
    (layout,) = (layout for layout in Emu2.layouts if layout.name == "emu2-gen")
    # The case has the decoder alone; any encoder will do beside it.
    case.weights |= dict(layout.convert(encoder.state_dict(), encoder.config, to="theirs"))
    assert layout.published_config is not None
    parts = {"multimodal_encoder": layout.published_config(encoder.config), "scheduler": config["scheduler"]}
    unet, vae = {"_class_name": "UNet2DConditionModel", **config["unet"]}, {"_class_name": "AutoencoderKL", **config["vae"]}
    painter = case.load(Emu2Gen, {**parts, "unet": unet, "vae": vae}, layout="emu2-gen")
    decoder = painter.decoder
    decoder.sampler = DiffusersSampler.from_published(config["scheduler"], num_steps=config["steps"])

    calls: list[tuple[torch.Tensor, ...]] = []
    decoder.unet.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    settings = {
        "size": (config["height"], config["width"]),
        "guidance": config["guidance_scale"],
        "noise": case.io["in.noise"],
        "generator": None,
    }
    nothing = case.io.get("in.null_embeds")
    case.check("out.latents", decoder.latents(case.io["in.cond_embeds"], nothing, **settings))
    case.check("out.image", decoder(case.io["in.cond_embeds"], nothing, **settings).movedim(1, -1))
    case.check("out.timesteps", torch.stack([time for _, time, *_ in calls[: config["steps"]]]))
    latents, _, conditions, told = calls[0]
    case.check("out.unet_in_0", latents)
    case.check("out.encoder_hidden_states", conditions)
    case.check("out.text_embeds", conditions.mean(dim=1))
    case.check("out.time_ids", told.flatten())
    case.check("out.unet_in_last", calls[config["steps"] - 1][0])
