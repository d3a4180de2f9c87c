"""MAR's diffusion head."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.heads.denoising import DenoisingHead
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.layers.diffusion.denoising_samplers import AncestralSampler
from mmblocks.layers.diffusion.learned_variance import LearnedVariancePath
from mmblocks.layers.diffusion.noise_schedules import Spacing

_DIMS = {"mar_base": 768, "mar_large": 1024, "mar_huge": 1280}


def adaln_mlp_rules(theirs: str, ours: str = "net.") -> tuple[Rule, ...]:
    """MAR's names of ``AdaLNMLP``."""
    return tuple(
        Rule(f"{theirs}{a}.*", f"{ours}{b}.*")
        for a, b in (
            ("time_embed.mlp", "time_embedding.mlp"),
            ("cond_embed", "condition"),
            ("input_proj", "input"),
            ("res_blocks.{}.in_ln", "blocks.{}.norm"),
            ("res_blocks.{}.mlp", "blocks.{}.mlp"),
            ("res_blocks.{}.adaLN_modulation.1", "blocks.{}.modulation"),
            ("final_layer.adaLN_modulation.1", "final_modulation"),
            ("final_layer.linear", "output"),
        )
    )


_OF_MAR = (
    "attn_dropout",
    "buffer_size",
    "class_num",
    "encoder_depth",
    "encoder_embed_dim",
    "encoder_num_heads",
    "decoder_depth",
    "decoder_num_heads",
    "grad_checkpointing",
    "img_size",
    "label_drop_prob",
    "mask_ratio_min",
    "mlp_ratio",
    "norm_eps",  # of the trunk's norms
    "proj_dropout",
    "vae_stride",
)
"""Arguments of MAR that say nothing of its head."""


def _alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of ``DiffLoss``; how often a token is learned is MAR's."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    return {
        "dim": config["z_channels"],
        "token_dim": config["target_channels"],
        "width": config["width"],
        "num_blocks": config["depth"],
        "steps": _steps(config),
        "repeats": config.get("diffusion_batch_mul", 1),
    }


def _in_mar(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of ``MAR``, and the name of the function that makes one."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    only(config, "function", *_DIMS)
    function, dim = config.get("function"), config.get("decoder_embed_dim")
    if dim is None:
        if function is None:
            raise KeyError("decoder_embed_dim")
        dim = _DIMS[function]
    return {
        "dim": dim,
        "token_dim": config.get("vae_embed_dim", 16) * config.get("patch_size", 1) ** 2,
        "width": config["diffloss_w"],
        "num_blocks": config["diffloss_d"],
        "steps": _steps(config),
        "repeats": config.get("diffusion_batch_mul", 4),
    }


def _steps(config: Mapping[str, Any]) -> Spacing:
    """Counts as numbers; other strings as they are."""
    steps = config.get("num_sampling_steps", "100")
    counts = steps.split(",") if isinstance(steps, str) else []
    if not counts or not all(count.isdecimal() for count in counts):
        return steps if isinstance(steps, int | str) else tuple(steps)
    return int(counts[0]) if len(counts) == 1 else tuple(map(int, counts))


def _published_steps(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The way back of ``_steps``: strings, which alone MAR takes."""
    steps = arguments["steps"]
    return {"num_sampling_steps": ",".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)}


def _published_alone(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "z_channels": arguments["dim"],
        "target_channels": arguments["token_dim"],
        "width": arguments["width"],
        "depth": arguments["num_blocks"],
        "diffusion_batch_mul": arguments["repeats"],
        **_published_steps(arguments),
    }


def _published_in_mar(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "decoder_embed_dim": arguments["dim"],
        "vae_embed_dim": arguments["token_dim"],
        "diffloss_w": arguments["width"],
        "diffloss_d": arguments["num_blocks"],
        "diffusion_batch_mul": arguments["repeats"],
        **_published_steps(arguments),
    }


class MARDiffusionHead(DenoisingHead):
    """Diffusion over single tokens with a learned variance, sampled step by step over some of the training's times.

    Time 0 is nearly clean; the network is told the time's index in training, whatever the sampler leaves out; guidance moves the
    predicted noise alone. MAR reads latents that are multiplied by 0.2325: that is its tokenizer's business here.

    Args:
        dim: width of the states (MAR-B 768, L 1024, H 1280).
        token_dim: channels of a token (16).
        width: of the network (1024, 1280, 1536).
        num_blocks: of the network (6, 8, 12).
        steps: of the sampler; see ``noise_schedules.Spacing``.
        repeats: times that each token is learned at in one step.

    Published: the head alone; "mar" is a whole model's file. MAR's scripts hold the arguments: a config.json beside a file names
    those of ``DiffLoss``, or of ``MAR``.

    Source: MAR (arXiv 2406.11838; LTH14/mar).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MARDiffusionHead
        >>> head = MARDiffusionHead(dim=16, token_dim=4, width=8, num_blocks=1, steps=5, repeats=2)
        >>> hidden, tokens = torch.randn(3, 16), torch.randn(3, 4)
        >>> tuple(head.loss(hidden, tokens).shape)
        (3,)
        >>> sample = head.sample(hidden, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(sample, head.sample(hidden, generator=torch.Generator().manual_seed(0)))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "diffloss",
            adaln_mlp_rules("net."),
            config=_alone,
            published_config=_published_alone,
            harmless=("grad_checkpointing",),
        ),
        Layout(
            "mar",
            adaln_mlp_rules("diffloss.net."),
            ignored=("*",),
            config=_in_mar,
            published_config=_published_in_mar,
            unwrap="model_ema",
            harmless=_OF_MAR,
        ),
    )

    def __init__(self, *, dim: int, token_dim: int, width: int, num_blocks: int, steps: Spacing = 100, repeats: int = 4) -> None:
        net = AdaLNMLP(dim=token_dim, condition_dim=dim, width=width, num_blocks=num_blocks, out_dim=2 * token_dim)
        super().__init__(net=net, path=LearnedVariancePath(), sampler=AncestralSampler(steps=steps), repeats=repeats)
