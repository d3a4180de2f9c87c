"""How bytedance/1d-tokenizer names the tensors of TiTok and TA-TiTok, and what its config says."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Rule
from mmblocks.tokenizers.maskgit_vqgan import maskgit_half_rules
from mmblocks.tokenizers.titok_vit import BASE, LARGE, SMALL

_SIZES = {"small": SMALL, "base": BASE, "large": LARGE}

_KINDS = {"TiTok": (True, True), "FirstStageTiTok": (True, False), "OneStageTiTok": (False, False)}
"""Whether the model tells codes of a VQGAN (``is_legacy``), and whether it holds that VQGAN's decoder (``finetune_decoder``)."""

_TRANSFORMER = (
    ("class_embedding", "class_token"),
    ("positional_embedding", "positions"),
    ("ln_pre.*", "norm_in.*"),
    ("ln_post.*", "norm_out.*"),
    ("transformer.{}.ln_1.*", "blocks.{}.norm1.*"),
    ("transformer.{}.attn.in_proj_weight", "blocks.{}.attn.qkv.weight"),
    ("transformer.{}.attn.in_proj_bias", "blocks.{}.attn.qkv.bias"),
    ("transformer.{}.attn.out_proj.*", "blocks.{}.attn.proj.*"),
    ("transformer.{}.ln_2.*", "blocks.{}.norm2.*"),
    ("transformer.{}.mlp.c_fc.*", "blocks.{}.mlp.fc1.*"),
    ("transformer.{}.mlp.c_proj.*", "blocks.{}.mlp.fc2.*"),
)


def _pointwise(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A 1x1 convolution of theirs that is a linear layer of ours."""
    return Rule(f"{theirs}.weight", f"{ours}.weight", "squeeze_1x1"), Rule(f"{theirs}.bias", f"{ours}.bias")


_SHARED = (
    *(Rule(f"encoder.{key}", f"encoder.transformer.{name}") for key, name in _TRANSFORMER),
    Rule("latent_tokens", "encoder.tokens"),
    Rule("encoder.latent_token_positional_embedding", "encoder.token_positions"),
    Rule("encoder.patch_embed.*", "encoder.patch_embed.*"),
    *_pointwise("encoder.conv_out", "encoder.project"),
    *(Rule(f"decoder.{key}", f"decoder.patches.transformer.{name}") for key, name in _TRANSFORMER),
    Rule("decoder.latent_token_positional_embedding", "decoder.patches.token_positions"),
    Rule("decoder.mask_token", "decoder.patches.mask_token"),
    Rule("decoder.decoder_embed.*", "decoder.patches.embed.*"),
    Rule("quantize.embedding.weight", "bottleneck.codes"),
)

FIRST_STAGE_RULES = (*_SHARED, *_pointwise("decoder.ffn.{}", "decoder.to_logits.{}"))

TWO_STAGE_RULES = (
    *FIRST_STAGE_RULES,
    Rule("pixel_quantize.embedding.weight", "decoder.codebook.codes"),
    *maskgit_half_rules("pixel_decoder", "decoder.pixel_decoder", "up"),
)

ONE_STAGE_RULES = (
    *_SHARED,
    *_pointwise("decoder.ffn.0", "decoder.to_pixels"),
    Rule("decoder.conv_out.*", "decoder.conv_out.*"),
)

TEXT_RULES = (
    *ONE_STAGE_RULES,
    Rule("decoder.text_guidance_proj.*", "decoder.guide.embed.*"),
    Rule("decoder.text_guidance_positional_embedding", "decoder.guide.positions"),
    Rule("quantize.embed_prob", "bottleneck.usage"),
)


def two_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``TiTok``.

    Raises:
        ValueError: the config of another kind of model.
    """
    _check_kind(config, "TiTok")
    return _network(config) | _codebook(_model(config))


def first_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``FirstStageTiTok``.

    Raises:
        ValueError: the config of another kind of model, or of one with a Gaussian, which upstream cannot train so.
    """
    _check_kind(config, "FirstStageTiTok")
    mode = _model(config).get("quantize_mode", "vq")
    if mode != "vq":
        raise ValueError(f"quantize_mode is {mode!r}; accepted: 'vq'")
    return _network(config) | _codebook(_model(config))


def one_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``OneStageTiTok``.

    Raises:
        ValueError: the config of another kind of model.
    """
    _check_kind(config, "OneStageTiTok")
    model = _model(config)
    mode = model.get("quantize_mode", "vq")
    if mode not in ("vq", "vae"):
        raise ValueError(f"quantize_mode is {mode!r}; accepted: 'vq', 'vae'")
    return _network(config) | (_codebook(model) if mode == "vq" else {"num_codes": None})


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``TATiTok``; raises as ``one_stage_config``."""
    model = _model(config)
    return {
        **one_stage_config(config),
        "clustering": model.get("clustering_vq", False),
        "text_dim": model.get("text_embed_dim", 768),
        "text_length": model.get("text_context_length", 77),
    }


def _model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tokenizer's part of a whole config, or that part alone."""
    return config["model"]["vq_model"] if "model" in config else config


def _check_kind(config: Mapping[str, Any], wanted: str) -> None:
    """Refuses the config of another kind of model, and says which class reads it, where one does."""
    model = _model(config)
    names = ("is_legacy", "finetune_decoder")
    flags = tuple(bool(model.get(name, True)) for name in names)
    if flags != _KINDS[wanted]:
        given, accepted = (
            " and ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) for values in (flags, _KINDS[wanted])
        )
        reader = next((f" ({kind} reads this one)" for kind, of_kind in _KINDS.items() if of_kind == flags), "")
        raise ValueError(f"config has {given}; accepted: {accepted}{reader}")


def _network(config: Mapping[str, Any]) -> dict[str, Any]:
    model = _model(config)
    return {
        "image_size": config.get("dataset", {}).get("preprocessing", {}).get("crop_size", 256),
        "num_tokens": model["num_latent_tokens"],
        "code_dim": model["token_size"],
        "patch_size": model["vit_enc_patch_size"],
        "decoder_patch_size": model["vit_dec_patch_size"],
        "encoder_size": _SIZES[model["vit_enc_model_size"]],
        "decoder_size": _SIZES[model["vit_dec_model_size"]],
    }


def _codebook(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_codes": model["codebook_size"], "metric": "cosine" if model["use_l2_norm"] else "l2"}
