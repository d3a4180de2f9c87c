"""Orthus's diffusion head."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import check_model, only, stated
from mmblocks.heads.denoising import DenoisingHead
from mmblocks.heads.mar import adaln_mlp_rules
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.layers.diffusion.noise_paths import DiffusionPath

_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Orthus-7B's sizes, which its code spells out, unless the config, a Chameleon's, has others."""
    check_model(config, "orthus", "chameleon")
    return {
        "dim": config.get("hidden_size", 4096),
        "token_dim": stated(config, "vq_config", {}).get("embed_dim", 256),
        "width": config.get("diffloss_w", 1536),
        "num_blocks": config.get("num_res_blocks", 3),
        "repeats": config.get("diffusion_batch_mul", 8),
        "num_steps": config.get("denoise_steps", 100),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    only(arguments, "scale", 0.1)
    return {
        "hidden_size": arguments["dim"],
        "vq_config": {"embed_dim": arguments["token_dim"]},
        "diffloss_w": arguments["width"],
        "num_res_blocks": arguments["num_blocks"],
        "diffusion_batch_mul": arguments["repeats"],
        "denoise_steps": arguments["num_steps"],
    }


_HARMLESS = (
    *(*LANGUAGE_MODEL, "model_parallel_size", "swin_norm", "qk_layernorm", "vq_config.*"),
    *("vocabulary_map.*", "image_token_id", "boi_token_id", "eoi_token_id", "mask_image_logits", "z_loss_weight"),
    "diffloss_d",  # an argument that upstream does not read
)
"""Of the trunk, the tokenizer and the ids of images."""


class OrthusDiffusionHead(DenoisingHead):
    """Diffusion over single latents by their velocity, on a schedule that ends in pure noise; sampled by DDIM without noise.

    Args:
        dim: width of the states.
        token_dim: channels of a latent.
        width: of the network.
        num_blocks: of the network.
        repeats: times that each latent is learned at in one step.
        num_steps: of the sampler.
        scale: latents are multiplied by this.

    Source: Orthus (arXiv 2412.00127; zhijie-group/Orthus).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import OrthusDiffusionHead
        >>> head = OrthusDiffusionHead(dim=16, token_dim=4, width=8, num_blocks=1, num_steps=5)
        >>> hidden, noise = torch.randn(3, 16), torch.randn(3, 4)
        >>> torch.equal(head.sample(hidden, noise=noise), head.sample(hidden, noise=noise))  # DDIM adds no noise
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "orthus",
            adaln_mlp_rules("mlp_head."),
            ignored=("*",),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        dim: int = 4096,
        token_dim: int = 256,
        width: int = 1536,
        num_blocks: int = 3,
        repeats: int = 8,
        num_steps: int = 100,
        scale: float = 0.1,
    ) -> None:
        schedule = {
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
            "steps_offset": 1,
            "clip_sample": False,
        }
        super().__init__(
            net=AdaLNMLP(dim=token_dim, condition_dim=dim, width=width, num_blocks=num_blocks),
            path=DiffusionPath(schedule="scaled_linear", zero_terminal_snr=True, prediction="velocity", **_BETAS),
            sampler=DiffusersSampler(scheduler="DDIMScheduler", options=_BETAS | schedule, num_steps=num_steps),
            repeats=repeats,
            scale=scale,
        )
