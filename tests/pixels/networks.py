"""Tiny denoising networks of diffusers, one of each kind, and how diffusers' own pipelines call them."""

import diffusers
import torch
from torch import Tensor

from mmblocks.layers import DiffusersSampler
from mmblocks.pixels import DiffusersDenoiser, StateGenerator
from mmblocks.tokenizers import DiffusersAutoencoder

UNET = {
    "attention_head_dim": 2, "block_out_channels": [4, 8], "cross_attention_dim": 6,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1, "norm_num_groups": 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "attention_head_dim": 4}
NETWORKS = {
    "sd": ("UNet2DConditionModel", UNET),
    "sdxl": ("UNet2DConditionModel", UNET | {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 5 + 6 * 4,
    }),
    "sd3": ("SD3Transformer2DModel", HEADS | {
        "sample_size": 4, "in_channels": 4, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 6,
        "caption_projection_dim": 8, "pooled_projection_dim": 5, "pos_embed_max_size": 8,
    }),
    "flux": ("FluxTransformer2DModel", {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "joint_attention_dim": 6, "pooled_projection_dim": 5, "guidance_embeds": True, "axes_dims_rope": [2, 2, 4],
    }),
    "sana": ("SanaTransformer2DModel", HEADS | {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4,
        "cross_attention_dim": 8, "caption_channels": 6, "sample_size": 4, "interpolation_scale": 2, "timestep_scale": 0.5,
    }),
    "lumina2": ("Lumina2Transformer2DModel", {
        "sample_size": 4, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
        "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": [4, 4, 4], "axes_lens": [12, 16, 16], "cap_feat_dim": 6,
    }),
}  # fmt: skip
POOLED = {"sdxl": 5, "sd3": 5, "flux": 5}
SCHEDULERS = {
    "sd": ("PNDMScheduler", {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "skip_prk_steps": True,
    }),
    "sdxl": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}),
    "sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_image_seq_len": 2, "max_image_seq_len": 9}),
    "sana": ("DPMSolverMultistepScheduler", {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2,
    }),
    "lumina2": ("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}),
}  # fmt: skip
AUTOENCODER = {
    "block_out_channels": [4, 4], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2, "scaling_factor": 0.13, "shift_factor": 0.2,
}  # fmt: skip
STEPS = 3


def network(name: str) -> DiffusersDenoiser:
    """With weights that are no zeros anywhere, so that every input matters."""
    torch.manual_seed(0)
    kind, arguments = NETWORKS[name]
    made = DiffusersDenoiser(kind=kind, arguments=arguments).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def autoencoder() -> DiffusersAutoencoder:
    torch.manual_seed(2)
    return DiffusersAutoencoder(kind="AutoencoderKL", arguments=AUTOENCODER).eval()


def sampler(name: str) -> DiffusersSampler:
    scheduler, options = SCHEDULERS[name]
    return DiffusersSampler(scheduler=scheduler, options=options, num_steps=STEPS, even=name in ("flux", "lumina2"))


def generator_of(name: str, **options) -> StateGenerator:
    return StateGenerator(network=network(name), sampler=sampler(name), autoencoder=autoencoder(), **options).eval()


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def called(name: str, model, x: Tensor, time: Tensor, conditions: Tensor, real: Tensor | None, pooled: Tensor | None) -> Tensor:
    """The network of diffusers as its pipeline calls it, for latents of twice as many pixels; ``time`` is a timestep each."""
    height, width = 2 * x.shape[-2], 2 * x.shape[-1]
    if name in ("sd", "sdxl"):
        more = {}
        if name == "sdxl":
            times = torch.tensor([[height, width, 0, 0, height, width]] * len(x))
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}
        return model(x, time, conditions, encoder_attention_mask=real, **more).sample
    if name == "sd3":
        return model(x, conditions, pooled, time).sample
    if name == "sana":
        return model(x, conditions, time * model.config.timestep_scale, encoder_attention_mask=real).sample
    if name == "lumina2":
        mask = torch.ones(conditions.shape[:2], dtype=torch.long) if real is None else real.long()
        return -model(x, 1 - time / 1000, conditions, mask).sample
    pipeline = diffusers.FluxPipeline
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    predicted = model(
        hidden_states=pipeline._pack_latents(x, *x.shape),
        encoder_hidden_states=conditions,
        pooled_projections=pooled,
        timestep=time / 1000,
        img_ids=pipeline._prepare_latent_image_ids(len(x), rows, columns, x.device, x.dtype),
        txt_ids=torch.zeros(conditions.shape[1], 3),
        guidance=torch.full([len(x)], 3.5),
    ).sample
    return pipeline._unpack_latents(predicted, height, width, 2)


def loop(name: str, model, noise: Tensor, conditions: Tensor, unconditional: Tensor | None, guidance: float) -> Tensor:
    """The loop of the pipeline, with zeros for pooled vectors; the latents after it."""
    scheduler_name, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, scheduler_name)(**options)
    timing = {}
    if name in ("flux", "lumina2"):
        import numpy as np

        timing["sigmas"] = np.linspace(1.0, 1 / STEPS, STEPS)
    if name == "flux":
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        tokens = noise.shape[-2] * noise.shape[-1] // 4
        timing["mu"] = calculate_shift(tokens, 2, 9, 0.5, 1.15)
    scheduler.set_timesteps(None if "sigmas" in timing else STEPS, **timing)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    pooled = torch.zeros(len(x), POOLED[name]) if name in POOLED else None
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        predicted = called(name, model, scaled, time.expand(len(x)), conditions, None, pooled)
        if unconditional is not None:
            without = called(name, model, scaled, time.expand(len(x)), unconditional, None, pooled)
            predicted = without + guidance * (predicted - without)
        x = scheduler.step(predicted, time, x, return_dict=False)[0]
    return x
