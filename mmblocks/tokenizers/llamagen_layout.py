"""What the published files of LlamaGen's tokenizer are like, which is also Janus's: the authors' own, and transformers'."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only, read_own, shown, stated, title, written_own
from mmblocks.checkpoints.layouts.rules import Arguments, at
from mmblocks.tokenizers.conv.taming_layout import TAMING_RULES, attention_rules, residual_rules

_MULTIPLIERS = {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4)}
_SIDES = (("encoder", "down"), ("decoder", "up"))

LLAMAGEN_RULES = (
    *(
        rule
        for half, side in _SIDES
        for rule in (
            *residual_rules(f"{half}.conv_blocks.{{}}.res.{{}}", f"{half}.levels.{{}}.blocks.{{}}"),
            *attention_rules(f"{half}.conv_blocks.{{}}.attn.{{}}", f"{half}.levels.{{}}.attentions.{{}}"),
            Rule(f"{half}.conv_blocks.{{}}.{side}sample.conv.*", f"{half}.levels.{{}}.resample.conv.*"),
            *residual_rules(f"{half}.mid.0", f"{half}.middle.block1"),
            *attention_rules(f"{half}.mid.1", f"{half}.middle.attention"),
            *residual_rules(f"{half}.mid.2", f"{half}.middle.block2"),
            *(Rule(f"{half}.{name}.*", f"{half}.{name}.*") for name in ("conv_in", "norm_out", "conv_out")),
        )
    ),
    Rule("quant_conv.*", "encoder.project.*"),
    Rule("post_quant_conv.*", "decoder.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.codes"),
)

_USAGE = "quantize.codebook_used"
"""Which codes the last training batches used: a statistic that upstream keeps with the weights."""


_OWN = {"image_size": 256, "entropy_temperature": None, "search": "cosine"}
"""Arguments that a config has no entries for; LlamaGen's own says ``search`` in other words."""

_TRAINING = ("codebook_show_usage", "commit_loss_beta", "entropy_loss_ratio", "dropout_p")
"""Of LlamaGen's ``ModelArgs``."""


def _llamagen_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """LlamaGen names its model ("VQ-16"); Janus, and options of either, spell it out. What is left out is as in both codes."""
    config = stated(config, "ModelArgs", config)
    only(config, "norm_type", "group")
    only(config, "resamp_with_conv", True)
    only(config, "in_channels", 3)
    only(config, "out_channels", 3)
    named: tuple[int, ...] = _MULTIPLIERS["VQ-16"]
    if config.get("model") is not None:
        if config["model"] not in _MULTIPLIERS:
            raise ValueError(f"{title(config, 'model')} is {shown(config['model'])}; accepted: {', '.join(_MULTIPLIERS)}")
        named = _MULTIPLIERS[config["model"]]
    both = stated(config, "ch_mult", named)
    multipliers = tuple(stated(config, "encoder_ch_mult", both))
    decoder_multipliers = tuple(stated(config, "decoder_ch_mult", both))
    own = read_own(config, {**_OWN, "search": "cosine" if config.get("codebook_l2_norm", True) else "l2"})
    return {
        "num_codes": config.get("codebook_size", 16384),
        "code_dim": config.get("codebook_embed_dim", 8),
        "latent_channels": config.get("z_channels", 256),
        "multipliers": multipliers,
        "decoder_multipliers": None if decoder_multipliers == multipliers else decoder_multipliers,
        "channels": config.get("ch", 128),
        "num_blocks": config.get("num_res_blocks", 2),
        **own,
    }


def _published_llamagen_config(arguments: Arguments) -> dict[str, Any]:
    search = arguments["search"]
    return {
        "codebook_size": arguments["num_codes"],
        "codebook_embed_dim": arguments["code_dim"],
        "codebook_l2_norm": search != "l2",
        "encoder_ch_mult": list(arguments["multipliers"]),
        "decoder_ch_mult": list(arguments["decoder_multipliers"] or arguments["multipliers"]),
        "z_channels": arguments["latent_channels"],
        "ch": arguments["channels"],
        "num_res_blocks": arguments["num_blocks"],
        **written_own({**arguments, "search": "cosine" if search == "l2" else search}, _OWN),
    }


def _janus_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole Janus: the tokenizer is one of its parts, a VQ-16 whatever the sizes beside its name say of the other parts."""
    check_model(config, "multi_modality", "MultiModalityCausalLM")
    part = config["gen_vision_config"]
    only(part, "model_type", "gen_vision")
    params = part["params"]
    only(params, "image_token_size", 16384)
    only(params, "n_embed", 8)
    return {**_llamagen_config({"model": part["cls"]}), **read_own(config, _OWN)}


def _published_janus_config(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: other sizes than Janus's code has, which cannot be told.
    """
    sizes = {name: value for name, value in arguments.items() if name not in _OWN}
    known = {name: value for name, value in _llamagen_config({"model": "VQ-16"}).items() if name not in _OWN}
    if sizes != known:
        raise ValueError(f"the sizes are {sizes}; accepted: {known}, since a whole Janus's config names VQ-16")
    part = {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}}
    return {"model_type": "multi_modality", "gen_vision_config": part, **written_own(arguments, _OWN)}


def _transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' names, and its defaults, which composite configs leave out."""
    check_model(config, "janus_vqgan", "JanusVQVAE")
    only(config, "double_latent", False)
    only(config, "in_channels", 3)
    only(config, "out_channels", 3)
    return {
        "num_codes": config.get("num_embeddings", 16384),
        "code_dim": config.get("embed_dim", 8),
        "channels": config.get("base_channels", 128),
        "multipliers": tuple(config.get("channel_multiplier", (1, 1, 2, 2, 4))),
        "num_blocks": config.get("num_res_blocks", 2),
        "latent_channels": config.get("latent_channels", 256),
        **read_own(config, _OWN),
    }


def _transformers_whole(config: Mapping[str, Any]) -> dict[str, Any]:
    check_model(config, "janus")
    return _transformers_config(config["vq_config"])


def _published_transformers_config(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: a decoder of other widths than the encoder's, which transformers has not.
    """
    if arguments["decoder_multipliers"] not in (None, arguments["multipliers"]):
        raise ValueError(f"decoder_multipliers is {arguments['decoder_multipliers']}; accepted: {arguments['multipliers']}")
    return {
        "model_type": "janus_vqgan",
        "num_embeddings": arguments["num_codes"],
        "embed_dim": arguments["code_dim"],
        "base_channels": arguments["channels"],
        "channel_multiplier": list(arguments["multipliers"]),
        "num_res_blocks": arguments["num_blocks"],
        "latent_channels": arguments["latent_channels"],
        "double_latent": False,
        "in_channels": 3,
        "out_channels": 3,
        **written_own(arguments, _OWN),
    }


def _published_whole(arguments: Arguments) -> dict[str, Any]:
    return {"model_type": "janus", "vq_config": _published_transformers_config(arguments)}


_ALIGNER = ("num_patches", "projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim")
"""In transformers' config of the tokenizer: of what a language model reads its codes by, and how many of them an image has."""

_JANUS_PARTS = (
    "vision_config.*",
    "aligner_config.*",
    "gen_aligner_config.*",
    "gen_head_config.*",
    "language_config.*",
    "tie_word_embeddings",
)

LLAMAGEN_LAYOUTS = (
    Layout(
        "llamagen",
        LLAMAGEN_RULES,
        ignored=(_USAGE,),
        config=_llamagen_config,
        published_config=_published_llamagen_config,
        unwrap="model",
        harmless=(*_TRAINING, *(f"ModelArgs.{name}" for name in _TRAINING)),
    ),
    Layout(
        "janus",
        at("gen_vision_model.", LLAMAGEN_RULES),
        ignored=("*",),
        config=_janus_config,
        published_config=_published_janus_config,
        harmless=_JANUS_PARTS,
    ),
    Layout(
        "janus-transformers",
        TAMING_RULES,
        config=_transformers_config,
        published_config=_published_transformers_config,
        harmless=_ALIGNER,
    ),
    Layout(
        "janus-transformers-whole",
        at("model.vqmodel.", TAMING_RULES),
        ignored=("*",),
        config=_transformers_whole,
        published_config=_published_whole,
        harmless=(
            *(f"vq_config.{name}" for name in _ALIGNER),
            *("text_config.*", "vision_config.*", "image_token_id", "tie_word_embeddings"),
        ),
    ),
)
