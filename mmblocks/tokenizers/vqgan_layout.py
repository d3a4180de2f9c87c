"""What the published files of VQGAN and of Chameleon's tokenizer are like: taming's own, diffusers' and transformers'."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from PIL import Image as PILImage

from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.preprocessing import (
    Preprocessor,
    check_processor,
    normalisation,
    published_normalisation,
    shortest_edge,
    square,
)
from mmblocks.checkpoints.layouts.published_config import check_model, only, plain, read_own, shown, stated, written_own
from mmblocks.checkpoints.layouts.rules import Arguments, at
from mmblocks.tokenizers.conv.taming_layout import (
    DIFFUSERS_RULES,
    TAMING_RULES,
    TRAINING_ENTRIES,
    TRAINING_MODULES,
    check_ddconfig,
    levels_at,
    published_ddconfig,
    taming_network,
)

_OWN = {"has_decoder": True}
_OWN_CHAMELEON = {**_OWN, "image_size": 512, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""Arguments that the official config has no entries for."""


def _taming_config(config: Mapping[str, Any], own: Mapping[str, Any] = _OWN) -> dict[str, Any]:
    network = taming_network(config["ddconfig"])
    return {**network, "num_codes": config["n_embed"], "code_dim": config["embed_dim"], **read_own(config, own)}


def _published_taming_config(arguments: Arguments, own: Mapping[str, Any] = _OWN) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: a decoder whose levels are counted from the deepest, as in diffusers' files.
    """
    if arguments.get("deepest_first"):
        raise ValueError("deepest_first is True; accepted: False, since taming's files count levels from the finest")
    return {
        "ddconfig": published_ddconfig(arguments),
        "n_embed": arguments["num_codes"],
        "embed_dim": arguments["code_dim"],
        **written_own(arguments, own),
    }


def _transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' names, and its defaults, which composite configs leave out. Its Chameleon has no decoder."""
    check_model(config, "chameleon_vqgan", "ChameleonVQVAE")
    check_ddconfig(config)
    only(config, "double_latent", False)
    multipliers = tuple(config.get("channel_multiplier", (1, 1, 2, 2, 4)))
    resolution = config.get("resolution", 512)
    return {
        "num_codes": config.get("num_embeddings", 8192),
        "code_dim": config.get("embed_dim", 256),
        "channels": config.get("base_channels", 128),
        "multipliers": multipliers,
        "num_blocks": config.get("num_res_blocks", 2),
        "attention_levels": levels_at(stated(config, "attn_resolutions", ()), resolution, len(multipliers)),
        "latent_channels": config.get("latent_channels", 256),
        "image_size": resolution,
        "has_decoder": False,
    }


def _transformers_whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a whole Chameleon."""
    check_model(config, "chameleon", "chameleon_xllmx")
    return _transformers_config(config["vq_config"])


def _whole_with_decoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a whole model whose files hold the decoder too: Orthus's and Anole's."""
    check_model(config, "orthus", "chameleon", "chameleon_xllmx")
    return {**_transformers_config(stated(config, "vq_config", {})), "has_decoder": True}


def _published_whole_with_decoder(arguments: Arguments) -> dict[str, Any]:
    if not arguments["has_decoder"]:
        raise ValueError(
            "has_decoder is False; accepted in the layout 'chameleon-whole-with-decoder': True, since its files hold a decoder"
        )
    return _published_whole({**arguments, "has_decoder": False})


def _published_transformers_config(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: what transformers has no place for: a decoder, or attention at a level whose side is not whole.
    """
    if arguments["has_decoder"]:
        raise ValueError("has_decoder is True; accepted: False, since transformers' checkpoints have no place for a decoder")
    side = arguments["image_size"]
    return {
        "model_type": "chameleon_vqgan",
        "num_embeddings": arguments["num_codes"],
        "embed_dim": arguments["code_dim"],
        "base_channels": arguments["channels"],
        "channel_multiplier": list(arguments["multipliers"]),
        "num_res_blocks": arguments["num_blocks"],
        "attn_resolutions": [side // 2**level for level in arguments["attention_levels"]],
        "latent_channels": arguments["latent_channels"],
        "double_latent": False,
        "resolution": side,
        "in_channels": 3,
        "attn_type": "vanilla",
        "dropout": 0.0,
    }


def _published_whole(arguments: Arguments) -> dict[str, Any]:
    return {"model_type": "chameleon", "vq_config": _published_transformers_config(arguments)}


def _images(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """What transformers' ChameleonImageProcessor reads. Its levels are multiplied by 0.0078, which is not quite 2 / 255."""
    check_processor(entries, "ChameleonImageProcessor")
    only(entries, "do_resize", True)
    only(entries, "do_center_crop", True)
    only(entries, "resample", PILImage.Resampling.LANCZOS)
    side = square(entries, "crop_size", 512)
    if shortest_edge(entries, "size", 512) != side:
        raise ValueError(f"size is {shown(plain(entries['size']))}; accepted: that of crop_size, {side}")
    return {"image_size": side, **normalisation(entries, mean=(1.0,) * 3, std=(1.0,) * 3, rescale_factor=0.0078)}


def _published_images(arguments: Arguments) -> dict[str, Any]:
    side = arguments["image_size"]
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": int(PILImage.Resampling.LANCZOS),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        **published_normalisation(arguments["mean"], arguments["std"]),
    }


_PREPROCESSOR = Preprocessor(_images, _published_images)

_DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
_UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
"""diffusers' levels, without attention and with it."""


def _diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' VQModel, with its defaults.

    Raises:
        ValueError: another class; another norm, another activation or no attention in the middle, which this class does not have;
            widths that are no multiples of the first; or levels whose attention differs between encoder and decoder.
    """
    only(config, "_class_name", "VQModel")
    only(config, "norm_type", "group")
    only(config, "act_fn", "silu")
    only(config, "norm_num_groups", 32)
    only(config, "mid_block_add_attention", True)
    only(config, "in_channels", 3)
    only(config, "out_channels", 3)
    widths = config.get("block_out_channels", (64,))
    down, up = config.get("down_block_types", _DOWN[:1]), config.get("up_block_types", _UP[:1])
    if any(width % widths[0] for width in widths):
        raise ValueError(f"block_out_channels is {list(widths)}; accepted: multiples of the first")
    if not set(down) <= set(_DOWN) or list(up) != [_UP[_DOWN.index(kind)] for kind in reversed(down)]:
        raise ValueError(f"down_block_types is {list(down)}, up_block_types {list(up)}; accepted: {_DOWN}, mirrored by {_UP}")
    latent_channels = config.get("latent_channels", 3)
    return {
        "num_codes": config.get("num_vq_embeddings", 256),
        "code_dim": stated(config, "vq_embed_dim", latent_channels),
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": config.get("layers_per_block", 1),
        "attention_levels": tuple(number for number, kind in enumerate(down) if kind == _DOWN[1]),
        "latent_channels": latent_channels,
        "deepest_first": True,
    }


def _published_diffusers_config(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: what diffusers has no place for.
    """
    if not arguments["has_decoder"] or not arguments["deepest_first"]:
        raise ValueError("accepted: has_decoder and deepest_first True, since diffusers' files are so")
    with_attention = [level in arguments["attention_levels"] for level in range(len(arguments["multipliers"]))]
    return {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": [_DOWN[attention] for attention in with_attention],
        "up_block_types": [_UP[attention] for attention in reversed(with_attention)],
        "block_out_channels": [arguments["channels"] * multiplier for multiplier in arguments["multipliers"]],
        "layers_per_block": arguments["num_blocks"],
        "act_fn": "silu",
        "latent_channels": arguments["latent_channels"],
        "num_vq_embeddings": arguments["num_codes"],
        "norm_num_groups": 32,
        "vq_embed_dim": arguments["code_dim"],
        "norm_type": "group",
        "mid_block_add_attention": True,
    }


_DIFFUSERS_HARMLESS = ("sample_size", "scaling_factor", "force_upcast", "lookup_from_codebook", "_use_default_values")
"""The scale is for those who read the encoder's features as latents; codes are looked up in any case."""

_DECODER = ("out_channels", "out_ch")
"""Of a decoder, which transformers' Chameleon has not."""

_CHAMELEON_PARTS = (
    *LANGUAGE_MODEL,
    "vocabulary_map.*",
    *("image_token_id", "boi_token_id", "eoi_token_id", "mask_image_logits", "z_loss_weight"),
    *("model_parallel_size", "swin_norm", "qk_layernorm"),
    *(f"vq_config.{name}" for name in ("resolution", *_DECODER)),
)

VQGAN_LAYOUTS = (
    Layout(
        "taming",
        TAMING_RULES,
        ignored=TRAINING_MODULES,
        config=_taming_config,
        published_config=_published_taming_config,
        unwrap="state_dict",
        harmless=TRAINING_ENTRIES,
    ),
    Layout(
        "diffusers",
        DIFFUSERS_RULES,
        config=_diffusers_config,
        published_config=_published_diffusers_config,
        harmless=_DIFFUSERS_HARMLESS,
        weights="diffusion_pytorch_model",
    ),
)

CHAMELEON_LAYOUTS = (
    Layout(
        "chameleon",
        TAMING_RULES,
        ignored=TRAINING_MODULES,
        config=partial(_taming_config, own=_OWN_CHAMELEON),
        published_config=partial(_published_taming_config, own=_OWN_CHAMELEON),
        unwrap="state_dict",
        harmless=TRAINING_ENTRIES,
    ),
    Layout(
        "chameleon-transformers",
        TAMING_RULES,
        config=_transformers_config,
        published_config=_published_transformers_config,
        harmless=_DECODER,
        preprocessor=_PREPROCESSOR,
    ),
    Layout(
        "chameleon-transformers-whole",
        at("model.vqmodel.", TAMING_RULES),
        ignored=("*",),
        config=_transformers_whole,
        published_config=_published_whole,
        harmless=_CHAMELEON_PARTS,
        preprocessor=_PREPROCESSOR,
    ),
    Layout(
        "chameleon-whole-with-decoder",
        at("model.vqmodel.", TAMING_RULES),
        ignored=("*",),
        config=_whole_with_decoder,
        published_config=_published_whole_with_decoder,
        harmless=(*_CHAMELEON_PARTS, "diffloss_w", "diffloss_d", "num_res_blocks", "diffusion_batch_mul", "denoise_steps"),
        preprocessor=_PREPROCESSOR,
    ),
)
