"""NOVA's flow head."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.heads.denoising import DenoisingHead
from mmblocks.layers.diffusion.adaln_mlp import PatchMLP
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of NOVA's ``DiffusionMLP``, of its scheduler (shift, steps) and of its guidance (trunc, renorm)."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    return {
        "dim": config["cond_dim"],
        "channels": config.get("image_dim", 4),
        "patch_size": config.get("patch_size", 2),
        "width": config["embed_dim"],
        "num_blocks": config["depth"],
        "shift": config.get("shift", 1.0),
        "num_steps": config.get("steps", 25),
        "guidance_below": config.get("trunc", 0.0),
        "guidance_renorm": config.get("renorm", 1.0),
        "repeats": config.get("loss_repeat", 1),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cond_dim": arguments["dim"],
        "image_dim": arguments["channels"],
        "patch_size": arguments["patch_size"],
        "embed_dim": arguments["width"],
        "depth": arguments["num_blocks"],
        "shift": arguments["shift"],
        "steps": arguments["num_steps"],
        "trunc": arguments["guidance_below"],
        "renorm": arguments["guidance_renorm"],
        "loss_repeat": arguments["repeats"],
    }


_RULES = (
    Rule("patch_embed.proj.*", "net.patches.*"),
    *(
        Rule(f"time_cond_embed.{theirs}.fc{layer}.*", f"net.{ours}.{place}.*")
        for theirs, ours in (("timestep_proj", "time_mlp"), ("condition_proj", "condition_mlp"))
        for layer, place in ((1, 0), (2, 2))
    ),
    Rule("blocks.{}.norm1.proj.*", "net.blocks.{}.modulation.*"),
    Rule("blocks.{}.norm2.*", "net.blocks.{}.norm.*"),
    Rule("blocks.{}.proj.fc1.*", "net.blocks.{}.mlp.0.*"),
    Rule("blocks.{}.proj.fc2.*", "net.blocks.{}.mlp.2.*"),
    Rule("norm.proj.*", "net.final_modulation.*"),
    Rule("head.*", "net.output.*"),
)


class NOVAFlowHead(DenoisingHead):
    """Flow over patches of latents, inner order (row, column, channel); Euler steps from noise to data.

    Time 0 is pure noise; the network is told sigma times a thousand. Only the tokens that are predicted are computed, where
    upstream carries the others through all steps too.

    Args:
        dim: width of the states.
        channels: of the latents.
        patch_size: side of a patch.
        width: of the network.
        num_blocks: of the network.
        shift: of the noise; see ``FlowPath``. As upstream and diffusers have it, the sampler's even steps begin from shifted ends
            and are shifted again.
        num_steps: of the sampler.
        guidance_below, guidance_renorm: see ``LinearGuidance``.
        repeats: times that each token is learned at in one step.

    Published: the head alone, without a config: one beside its file names the arguments of the three classes.

    Source: NOVA (arXiv 2412.14169; baaivision/NOVA).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import NOVAFlowHead
        >>> head = NOVAFlowHead(dim=16, channels=2, patch_size=2, width=8, num_blocks=1, num_steps=3)
        >>> tuple(head.sample(torch.randn(5, 16)).shape)  # a patch of 2 x 2 latents each
        (5, 8)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("nova", _RULES, config=_config, published_config=_published_config, harmless=("gs", "guidance_scale")),
    )

    def __init__(
        self,
        *,
        dim: int,
        channels: int = 4,
        patch_size: int = 2,
        width: int,
        num_blocks: int,
        shift: float = 1.0,
        num_steps: int = 25,
        guidance_below: float = 0.0,
        guidance_renorm: float = 1.0,
        repeats: int = 1,
    ) -> None:
        super().__init__(
            net=PatchMLP(channels=channels, patch_size=patch_size, condition_dim=dim, width=width, num_blocks=num_blocks),
            path=FlowPath(shift=shift),
            sampler=DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", options={"shift": shift}, num_steps=num_steps),
            guidance=LinearGuidance(below=guidance_below, renorm=guidance_renorm),
            repeats=repeats,
        )
