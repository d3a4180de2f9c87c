"""How Emu3's tokenizer names its tensors, in its own files and in transformers', and what their configs say."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.checkpoints.rules import Arguments
from mmblocks.tokenizers.taming_layout import at, half_rules, nested

_SPATIAL_NORM = (("norm_layer.*", "norm.*"), ("conv_y.*", "scale.*"), ("conv_b.*", "shift.*"))

_IN_TRANSFORMERS = (
    ("encoder.down.", "encoder.down_block.down."),
    ("decoder.up.", "decoder.up_block.up."),
    (".mid.", ".middle_block."),
    ("attn.{}.norm.", "attn_norms.{}."),
    ("attn_1.norm.", "attn_norm."),
    (".q.*", ".q_proj.*"),
    (".k.*", ".k_proj.*"),
    (".v.*", ".v_proj.*"),
    (".proj_out.*", ".out_proj.*"),
)
"""What transformers calls parts of a name."""

_CONFIG = {
    "codebook_size": "num_codes",
    "embed_dim": "code_dim",
    "ch": "channels",
    "ch_mult": "multipliers",
    "num_res_blocks": "num_blocks",
    "attn_resolutions": "attention_levels",
    "temporal_downsample_factor": "temporal_factor",
}
_TRANSFORMERS_CONFIG = {"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels"}
_TRANSFORMERS_DEFAULTS = {
    "codebook_size": 32768,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 256,
    "channel_multiplier": (1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (3,),
    "temporal_downsample_factor": 4,
}
"""transformers leaves out of a composite model's config what is the default."""


def _conditioned(rules: Iterable[Rule]) -> Iterator[Rule]:
    """The same rules where every norm is conditioned."""
    for rule in rules:
        if rule.theirs.split(".")[-2].startswith("norm"):
            yield from nested(rule.theirs.removesuffix(".*"), rule.ours.removesuffix(".*"), _SPATIAL_NORM)
        else:
            yield rule


def _in_transformers(rules: Iterable[Rule]) -> Iterator[Rule]:
    """The same rules with transformers' names; its attention has linear layers instead of 1x1 convolutions."""
    for rule in rules:
        theirs = rule.theirs
        for old, new in _IN_TRANSFORMERS:
            theirs = theirs.replace(old, new)
        if "_proj.*" in theirs:
            yield Rule(theirs.replace("*", "weight"), rule.ours.replace("*", "weight"), "unsqueeze_1x1")
            yield Rule(theirs.replace("*", "bias"), rule.ours.replace("*", "bias"))
        else:
            yield Rule(theirs, rule.ours)


_RULES = (
    *half_rules("encoder", "encoder.spatial", "down"),
    *_conditioned(half_rules("decoder", "decoder.spatial", "up")),
    Rule("encoder.time_conv.{}.conv.conv.*", "encoder.shorten.{}.conv.*"),
    Rule("decoder.time_conv.{}.conv.conv.*", "decoder.lengthen.{}.conv.*"),
    *(
        Rule(f"{side}.time_res_stack.{{}}.{theirs}.*", f"{side}.look_back.{{}}.{ours}.*")
        for side in ("encoder", "decoder")
        for theirs, ours in (("norm1", "norm1"), ("conv1.conv", "conv1"), ("norm2", "norm2"), ("conv2.conv", "conv2"))
    ),
    Rule("quant_conv.conv.*", "encoder.project.*"),
    Rule("post_quant_conv.conv.*", "decoder.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.codes"),
)
_TRANSFORMERS_RULES = tuple(_in_transformers(_RULES))


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dropout, which every published model has at 0, is left out.

    Raises:
        ValueError: what upstream's own decoder cannot run, or what is no RGB.
    """
    if config["z_channels"] != config["embed_dim"]:
        raise ValueError(f"z_channels is {config['z_channels']}; accepted: {config['embed_dim']}, the value of embed_dim")
    if config.get("double_z"):
        raise ValueError("double_z is true; accepted: false (a VQ tokenizer's encoder has no variance)")
    for name in ("in_channels", "out_channels"):
        if config.get(name, 3) != 3:
            raise ValueError(f"{name} is {config[name]}; accepted: 3, for RGB")
    arguments = {ours: config[theirs] for theirs, ours in _CONFIG.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    return {
        "model_type": "Emu3VisionVQ",
        "z_channels": arguments["code_dim"],
        "double_z": False,
        "in_channels": 3,
        "out_channels": 3,
        "dropout": 0.0,
        **{theirs: arguments[ours] for theirs, ours in _CONFIG.items()},
    }


def _transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the tokenizer alone, or of the whole Emu3, whose ``vq_config`` it is."""
    if "vq_config" not in config and config.get("model_type") != "emu3_vqgan":
        raise ValueError(f"model_type is {config.get('model_type')!r}; accepted: 'emu3_vqgan', or a config with a vq_config")
    given = {**_TRANSFORMERS_DEFAULTS, **config.get("vq_config", config)}
    if given.get("num_attention_heads", 1) != 1:
        raise ValueError(f"num_attention_heads is {given['num_attention_heads']}; accepted: 1, as published")
    renamed = {theirs: given[name] for theirs, name in _TRANSFORMERS_CONFIG.items()}
    return _config({**given, **renamed, "double_z": given.get("double_latent")})


def _published_transformers_config(arguments: Arguments) -> dict[str, Any]:
    published = _published_config(arguments)
    renamed = {name: published.pop(theirs) for theirs, name in _TRANSFORMERS_CONFIG.items()}
    return {
        **published,
        **renamed,
        "model_type": "emu3_vqgan",
        "hidden_size": arguments["channels"] * arguments["multipliers"][-1],
        "double_latent": published.pop("double_z"),
    }


def _transformers_layout(name: str, prefix: str, ignored: tuple[str, ...] = ()) -> Layout:
    return Layout(
        name,
        at(prefix, _TRANSFORMERS_RULES),
        ignored=ignored,
        config=_transformers_config,
        published_config=_published_transformers_config if not prefix else None,
    )


EMU3_LAYOUTS = (
    Layout("emu3", _RULES, config=_config, published_config=_published_config),
    _transformers_layout("emu3-transformers", ""),
    _transformers_layout("emu3-transformers-composite", "model.vqmodel.", ("model.text_model.*", "lm_head.weight")),
    _transformers_layout("emu3-transformers-4", "vqmodel.", ("text_model.*",)),
)
"""The tokenizer's own files; transformers' port of it alone; inside its Emu3 since version 5, and in the files before."""
