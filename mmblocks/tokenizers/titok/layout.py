"""How bytedance/1d-tokenizer names the tensors of TiTok and TA-TiTok, and what its config says."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Rule
from mmblocks.checkpoints.layouts.published_config import only, read_own, shown, title, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.tokenizers.titok.maskgit_vqgan import maskgit_half_rules
from mmblocks.tokenizers.titok.sizes import BASE, LARGE, SMALL

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


_PIXELS = {
    "num_pixel_codes": 1024,
    "pixel_code_dim": 256,
    "pixel_channels": 128,
    "pixel_multipliers": (1, 1, 2, 2, 4),
    "pixel_blocks": 2,
}
"""Sizes of the VQGAN, which stand in the official code alone."""

_VQ_MODEL = (
    "commitment_cost",
    "pretrained_tokenizer_weight",
    "clustering_vq",
    "text_context_length",
    "text_embed_dim",
    "codebook_size",
    "use_l2_norm",
)
"""What the model's part holds for training, for another kind of bottleneck, or for the kind of model that reads a text."""

HARMLESS = (
    *_VQ_MODEL,
    *(f"model.vq_model.{name}" for name in _VQ_MODEL),
    *(
        f"{section}.*"
        for section in ("experiment", "losses", "optimizer", "lr_scheduler", "training", "dataset.params", "model.generator")
    ),
    *(f"dataset.preprocessing.{name}" for name in ("random_crop", "random_flip", "res_ratio_filtering", "min_size")),
)
"""Of the whole config: how the model is trained."""


def two_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``TiTok``.

    Raises:
        ValueError: the config of another kind of model.
    """
    _check_kind(config, "TiTok")
    only(_model(config), "quantize_mode", "vq")
    return _network(config) | _codebook(_model(config)) | read_own(config, _PIXELS)


def first_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``FirstStageTiTok``.

    Raises:
        ValueError: the config of another kind of model, or of one with a Gaussian, which upstream cannot train so.
    """
    _check_kind(config, "FirstStageTiTok")
    only(_model(config), "quantize_mode", "vq")
    own = read_own(config, {"num_pixel_codes": _PIXELS["num_pixel_codes"]})
    return _network(config) | _codebook(_model(config)) | own


def one_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``OneStageTiTok``.

    Raises:
        ValueError: the config of another kind of model.
    """
    _check_kind(config, "OneStageTiTok")
    model = _model(config)
    only(model, "quantize_mode", "vq", "vae")
    codebook = {"num_codes": None} if model.get("quantize_mode") == "vae" else _codebook(model)
    return _network(config) | codebook


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``TATiTok``; raises as ``one_stage_config``."""
    model = _model(config)
    return {
        **one_stage_config(config),
        "clustering": model.get("clustering_vq", False),
        "text_dim": model.get("text_embed_dim", 768),
        "text_length": model.get("text_context_length", 77),
    }


def published_config(arguments: Arguments, kind: str) -> dict[str, Any]:
    """The way back, for the ``TiTok``, ``FirstStageTiTok``, ``OneStageTiTok`` or ``TATiTok`` that ``kind`` says.

    Sizes of transformers that upstream has no name for are written as they are, and read again here alone.
    """
    is_legacy, finetune_decoder = _KINDS["OneStageTiTok" if kind == "TATiTok" else kind]
    codebook: dict[str, Any] = {"quantize_mode": "vae"}
    if arguments["num_codes"] is not None:
        l2_norm = arguments["metric"] == "cosine"
        codebook = {"quantize_mode": "vq", "codebook_size": arguments["num_codes"], "use_l2_norm": l2_norm}
    model: dict[str, Any] = {
        **codebook,
        "token_size": arguments["code_dim"],
        "commitment_cost": 0.25,
        "vit_enc_model_size": _size_name(arguments["encoder_size"]),
        "vit_dec_model_size": _size_name(arguments["decoder_size"]),
        "vit_enc_patch_size": arguments["patch_size"],
        "vit_dec_patch_size": arguments["decoder_patch_size"],
        "num_latent_tokens": arguments["num_tokens"],
        "finetune_decoder": finetune_decoder,
        "is_legacy": is_legacy,
    }
    if kind == "TATiTok":
        names = {"clustering": "clustering_vq", "text_dim": "text_embed_dim", "text_length": "text_context_length"}
        model |= {theirs: arguments[ours] for ours, theirs in names.items()}
    own = {name: default for name, default in _PIXELS.items() if name in arguments}
    return {
        "model": {"vq_model": model},
        "dataset": {"preprocessing": {"crop_size": arguments["image_size"]}},
        **written_own(arguments, own),
    }


def _size_name(size: tuple[int, int, int]) -> str | list[int]:
    return next((name for name, known in _SIZES.items() if known == tuple(size)), list(size))


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
        "image_size": _image_size(config),
        "num_tokens": model["num_latent_tokens"],
        "code_dim": model["token_size"],
        "patch_size": model["vit_enc_patch_size"],
        "decoder_patch_size": model["vit_dec_patch_size"],
        "encoder_size": _size(model, "vit_enc_model_size"),
        "decoder_size": _size(model, "vit_dec_model_size"),
    }


def _image_size(config: Mapping[str, Any]) -> int:
    """Of the square that the evaluation cuts, after resizing the shorter side to as many pixels."""
    images = config.get("dataset", {}).get("preprocessing", {})
    size: int = images.get("crop_size", 256)
    only(images, "resize_shorter_edge", size)
    only(images, "interpolation", "bicubic")
    only(images, "normalize_mean", [0.0, 0.0, 0.0])
    only(images, "normalize_std", [1.0, 1.0, 1.0])
    return size


def _size(model: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = model[key]
    if isinstance(value, list):
        return tuple(value)
    if value not in _SIZES:
        raise ValueError(f"{title(model, key)} is {shown(value)}; accepted: {', '.join(_SIZES)}")
    return _SIZES[value]


def _codebook(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_codes": model["codebook_size"], "metric": "cosine" if model["use_l2_norm"] else "l2"}
