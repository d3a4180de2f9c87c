"""How taming-transformers names the tensors of its autoencoder, which many later tokenizers kept, and what its config says."""

from collections.abc import Collection, Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Rule
from mmblocks.checkpoints.layouts.published_config import only, shown, title
from mmblocks.checkpoints.layouts.rules import Arguments, nested

_RESIDUAL = (
    ("norm1.*", "norm1.*"),
    ("conv1.*", "conv1.*"),
    ("norm2.*", "norm2.*"),
    ("conv2.*", "conv2.*"),
    ("nin_shortcut.*", "shortcut.*"),
)
_ATTENTION = (
    ("norm.*", "norm.*"),
    ("q.*", "query.*"),
    ("k.*", "key.*"),
    ("v.*", "value.*"),
    ("proj_out.*", "out.*"),
)


def residual_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A residual block's rules."""
    return nested(theirs, ours, _RESIDUAL)


def attention_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """An attention block's rules."""
    return nested(theirs, ours, _ATTENTION)


def half_rules(theirs: str, ours: str, side: str) -> tuple[Rule, ...]:
    """The rules of taming's encoder or decoder; ``side`` is "down" or "up"."""
    return (
        *residual_rules(f"{theirs}.{side}.{{}}.block.{{}}", f"{ours}.levels.{{}}.blocks.{{}}"),
        *attention_rules(f"{theirs}.{side}.{{}}.attn.{{}}", f"{ours}.levels.{{}}.attentions.{{}}"),
        Rule(f"{theirs}.{side}.{{}}.{side}sample.conv.*", f"{ours}.levels.{{}}.resample.conv.*"),
        *residual_rules(f"{theirs}.mid.block_1", f"{ours}.middle.block1"),
        *attention_rules(f"{theirs}.mid.attn_1", f"{ours}.middle.attention"),
        *residual_rules(f"{theirs}.mid.block_2", f"{ours}.middle.block2"),
        Rule(f"{theirs}.conv_in.*", f"{ours}.conv_in.*"),
        Rule(f"{theirs}.norm_out.*", f"{ours}.norm_out.*"),
        Rule(f"{theirs}.conv_out.*", f"{ours}.conv_out.*"),
    )


PROJECTION_RULES = (
    Rule("quant_conv.*", "encoder.project.*"),
    Rule("post_quant_conv.*", "decoder.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.codes"),
)
"""What stands around the codebook, and the codebook."""

TAMING_RULES = (
    *half_rules("encoder", "encoder", "down"),
    *half_rules("decoder", "decoder", "up"),
    *PROJECTION_RULES,
)
"""taming-transformers' names, which many later tokenizers kept."""

_PROJECTIONS = (("q", "query"), ("k", "key"), ("v", "value"), ("out.0", "out"))
_DIFFUSERS_RESIDUAL = (
    *((f"{name}.*", f"{name}.*") for name in ("norm1", "conv1", "norm2", "conv2")),
    ("conv_shortcut.*", "shortcut.*"),
)
_DIFFUSERS_ATTENTION = (("group_norm.*", "norm.*"), *((f"to_{name}.bias", f"{ours}.bias") for name, ours in _PROJECTIONS))


def diffusers_half_rules(half: str, side: str) -> tuple[Rule, ...]:
    """The rules of diffusers' encoder or decoder; ``side`` is "down" or "up". Its attention has linear layers."""
    middle, level = f"{half}.mid_block", f"{half}.{side}_blocks.{{}}"
    places = (
        (f"{middle}.attentions.0", f"{half}.middle.attention"),
        (f"{level}.attentions.{{}}", f"{half}.levels.{{}}.attentions.{{}}"),
    )
    return (
        *nested(f"{level}.resnets.{{}}", f"{half}.levels.{{}}.blocks.{{}}", _DIFFUSERS_RESIDUAL),
        Rule(f"{level}.{side}samplers.0.conv.*", f"{half}.levels.{{}}.resample.conv.*"),
        *nested(f"{middle}.resnets.0", f"{half}.middle.block1", _DIFFUSERS_RESIDUAL),
        *nested(f"{middle}.resnets.1", f"{half}.middle.block2", _DIFFUSERS_RESIDUAL),
        *(rule for theirs, ours in places for rule in nested(theirs, ours, _DIFFUSERS_ATTENTION)),
        *(
            Rule(f"{theirs}.to_{name}.weight", f"{ours}.{our_name}.weight", "unsqueeze_1x1")
            for theirs, ours in places
            for name, our_name in _PROJECTIONS
        ),
        Rule(f"{half}.conv_in.*", f"{half}.conv_in.*"),
        Rule(f"{half}.conv_norm_out.*", f"{half}.norm_out.*"),
        Rule(f"{half}.conv_out.*", f"{half}.conv_out.*"),
    )


DIFFUSERS_RULES = (
    *diffusers_half_rules("encoder", "down"),
    *diffusers_half_rules("decoder", "up"),
    *PROJECTION_RULES,
)
"""The names of diffusers' VQModel. Its decoder counts levels from the deepest."""

TRAINING_MODULES = ("loss.*",)
"""Perceptual network and discriminator, which training checkpoints hold too."""


TRAINING_ENTRIES = (
    "lossconfig.*",
    "learning_rate",
    "base_learning_rate",
    "resume_lr",
    "min_learning_rate",
    "warmup_epochs",
    "scheduler_type",
    "scheduler_config.*",
    "lr_drop_epoch",
    "lr_drop_rate",
    "lr_g_factor",
    "gradient_clip_val",
    "ckpt_path",
    "ignore_keys",
    "image_key",
    "monitor",
    "use_ema",
    "stage",
    "sane_index_shape",
    "beta",
    "legacy",
    "l2_normalize",
    "sample_minimization_weight",
    "batch_maximization_weight",
    *(f"{part}{name}" for part in ("", "ddconfig.") for name in ("resolution", "attn_resolutions")),
)
"""Of taming-transformers' VQModel and its descendants: what counts in training alone, and of losses their weights.

The two resolutions are read, but not every value of either moves attention to other levels.
"""


def averaged(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of the running averages beside the weights: ``model_ema`` and the names without their dots."""
    spelled = [
        Rule(rule.theirs.replace("*", end), rule.ours.replace("*", end), rule.transform)
        for rule in rules
        for end in (("weight", "bias") if rule.theirs.endswith("*") else ("",))
    ]
    return tuple(Rule("model_ema." + rule.theirs.replace(".", ""), rule.ours, rule.transform) for rule in spelled)


def taming_network(ddconfig: Mapping[str, Any]) -> dict[str, Any]:
    """What taming's ``ddconfig`` says of the network. Attention goes by the nominal resolution, whatever the image's size.

    Raises:
        ValueError: an encoder of twice the latent width, which is a variational one; or another form of the network.
    """
    check_ddconfig(ddconfig)
    multipliers = tuple(ddconfig["ch_mult"])
    return {
        "channels": ddconfig["ch"],
        "multipliers": multipliers,
        "num_blocks": ddconfig["num_res_blocks"],
        "attention_levels": levels_at(ddconfig["attn_resolutions"], ddconfig["resolution"], len(multipliers)),
        "latent_channels": ddconfig["z_channels"],
    }


def check_ddconfig(ddconfig: Mapping[str, Any]) -> None:
    """Refuses what the network in latent diffusion's and taming's code can be beside what tokenizers are.

    Raises:
        ValueError: names the entry.
    """
    only(ddconfig, "double_z", False)  # a VQ tokenizer's encoder has no variance
    only(ddconfig, "in_channels", 3)
    only(ddconfig, "out_ch", 3)
    only(ddconfig, "resamp_with_conv", True)
    only(ddconfig, "use_linear_attn", False)
    only(ddconfig, "give_pre_end", False)
    only(ddconfig, "tanh_out", False)
    if "attn_type" in ddconfig and ddconfig["attn_type"] != "vanilla":  # None, too, is another one
        raise ValueError(f"{title(ddconfig, 'attn_type')} is {shown(ddconfig['attn_type'])}; accepted: 'vanilla'")


def published_ddconfig(arguments: Arguments) -> dict[str, Any]:
    """The way back from the arguments of ``taming_network``, for images of as many pixels as make each level's side unlike."""
    multipliers = arguments["multipliers"]
    resolution = 2 ** (len(multipliers) + 3)
    return {
        "double_z": False,
        "z_channels": arguments["latent_channels"],
        "resolution": resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": arguments["channels"],
        "ch_mult": list(multipliers),
        "num_res_blocks": arguments["num_blocks"],
        "attn_resolutions": [resolution // 2**level for level in arguments["attention_levels"]],
        "dropout": 0.0,
    }


def levels_at(sides: Collection[int], resolution: int, num_levels: int) -> tuple[int, ...]:
    """The levels whose maps have one of these sides, for images of ``resolution`` pixels a side."""
    return tuple(level for level in range(num_levels) if resolution // 2**level in sides)
