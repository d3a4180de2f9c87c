"""How Emu3's tokenizer names its tensors, in its own files and in transformers', and what their configs say."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from PIL import Image as PILImage

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.preprocessing import Preprocessor, check_processor, count, normalisation, published_normalisation
from mmblocks.checkpoints.layouts.published_config import check_model, only
from mmblocks.checkpoints.layouts.rules import Arguments, at, nested
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD
from mmblocks.tokenizers.conv.taming_layout import half_rules

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
    "num_codes": ("codebook_size", 32768),
    "code_dim": ("embed_dim", 4),
    "channels": ("ch", 256),
    "multipliers": ("ch_mult", (1, 2, 2, 4)),
    "num_blocks": ("num_res_blocks", 2),
    "attention_levels": ("attn_resolutions", (3,)),
    "temporal_factor": ("temporal_downsample_factor", 4),
}
"""Arguments -> entries, and what both upstream classes take where there is none: composite configs leave out defaults."""

_TRANSFORMERS_CONFIG = {"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels"}


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
    check_model(config, "Emu3VisionVQ")
    only(config, "double_z", False)
    return _network(config, {})


def _network(config: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """What both configs say; ``renamed`` holds the second's names for entries of the first.

    Raises:
        ValueError: what upstream's own decoder cannot run, or what is no RGB.
    """
    arguments = {}
    for ours, (theirs, default) in _CONFIG.items():
        value = config.get(renamed.get(theirs, theirs), default)
        arguments[ours] = tuple(value) if isinstance(value, list) else value
    only(config, "in_channels", 3)
    only(config, "out_channels", 3)
    name = renamed.get("z_channels", "z_channels")
    if config.get(name, 4) != arguments["code_dim"]:
        raise ValueError(f"{name} is {config.get(name, 4)}; accepted: {arguments['code_dim']}, the value of embed_dim")
    return arguments


def _published_config(arguments: Arguments) -> dict[str, Any]:
    return {
        "model_type": "Emu3VisionVQ",
        "z_channels": arguments["code_dim"],
        "double_z": False,
        "in_channels": 3,
        "out_channels": 3,
        "dropout": 0.0,
        **{theirs: arguments[ours] for ours, (theirs, _) in _CONFIG.items()},
    }


def _transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the tokenizer alone, or of the whole Emu3, whose ``vq_config`` it is."""
    if "vq_config" in config:
        check_model(config, "emu3")
        config = config["vq_config"]
    elif config.get("model_type") != "emu3_vqgan":
        raise ValueError(f"model_type is {config.get('model_type')!r}; accepted: 'emu3_vqgan', or a config with a vq_config")
    check_model(config, "emu3_vqgan", "Emu3VQVAE")
    only(config, "double_latent", False)
    only(config, "num_attention_heads", 1)
    arguments = _network(config, _TRANSFORMERS_CONFIG)
    only(config, "hidden_size", arguments["channels"] * arguments["multipliers"][-1])
    return arguments


def _published_transformers_config(arguments: Arguments) -> dict[str, Any]:
    published = _published_config(arguments)
    renamed = {name: published.pop(theirs) for theirs, name in _TRANSFORMERS_CONFIG.items()}
    double = published.pop("double_z")
    published.pop("dropout")
    return {
        **published,
        **renamed,
        "model_type": "emu3_vqgan",
        "hidden_size": arguments["channels"] * arguments["multipliers"][-1],
        "num_attention_heads": 1,
        "double_latent": double,
    }


def _published_composite(arguments: Arguments) -> dict[str, Any]:
    return {"model_type": "emu3", "vq_config": _published_transformers_config(arguments)}


def _images(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Mapping[str, Any], Arguments], dict[str, Any]]:
    """The reader of the image processor's entries; the two classes take another mean and deviation where there is none."""

    def read(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
        check_processor(entries, "Emu3VisionVQImageProcessor", "Emu3ImageProcessor")
        only(entries, "do_resize", True)
        only(entries, "resample", PILImage.Resampling.BICUBIC)
        step = count(entries, "spatial_factor", 8)
        return {
            "min_pixels": count(entries, "min_pixels", 512 * 512),
            "max_pixels": count(entries, "max_pixels", 1024 * 1024),
            "size_step": None if step == 2 ** (len(arguments["multipliers"]) - 1) else step,
            **normalisation(entries, mean=mean, std=std),
        }

    return read


def _published_images(name: str) -> Callable[[Arguments], dict[str, Any]]:
    def published(arguments: Arguments) -> dict[str, Any]:
        step = arguments["size_step"]
        return {
            "image_processor_type": name,
            "do_resize": True,
            "resample": int(PILImage.Resampling.BICUBIC),
            "min_pixels": arguments["min_pixels"],
            "max_pixels": arguments["max_pixels"],
            "spatial_factor": 2 ** (len(arguments["multipliers"]) - 1) if step is None else step,
            **published_normalisation(arguments["mean"], arguments["std"]),
        }

    return published


_SIZES_AGAIN = ("size.min_pixels", "size.max_pixels")
"""Written by transformers beside the entries of the same names, which alone it reads."""

_PREPROCESSOR = Preprocessor(_images((0.5,) * 3, (0.5,) * 3), _published_images("Emu3VisionVQImageProcessor"), _SIZES_AGAIN)
_TRANSFORMERS_PREPROCESSOR = Preprocessor(
    _images(CLIP_MEAN, CLIP_STD), _published_images("Emu3ImageProcessor"), (*_SIZES_AGAIN, "do_pad")
)


def _transformers_layout(name: str, prefix: str, ignored: tuple[str, ...] = ()) -> Layout:
    return Layout(
        name,
        at(prefix, _TRANSFORMERS_RULES),
        ignored=ignored,
        config=_transformers_config,
        published_config=_published_composite if prefix else _published_transformers_config,
        harmless=("text_config.*", "vocabulary_map.*", "image_token_id", "tie_word_embeddings"),
        preprocessor=_TRANSFORMERS_PREPROCESSOR,
    )


EMU3_LAYOUTS = (
    Layout("emu3", _RULES, config=_config, published_config=_published_config, preprocessor=_PREPROCESSOR),
    _transformers_layout("emu3-transformers", ""),
    _transformers_layout("emu3-transformers-composite", "model.vqmodel.", ("model.text_model.*", "lm_head.weight")),
    _transformers_layout("emu3-transformers-4", "vqmodel.", ("text_model.*",)),
)
"""The tokenizer's own files; transformers' port of it alone; inside its Emu3 since version 5, and in the files before."""
