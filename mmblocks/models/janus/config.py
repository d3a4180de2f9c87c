"""Published configs of Janus, the authors' own and transformers', and those of their image processors."""

from collections.abc import Mapping
from typing import Any

from PIL import Image as PILImage

from mmblocks.checkpoints.layouts.preprocessing import (
    Preprocessor,
    check_processor,
    normalisation,
    published_normalisation,
    square,
)
from mmblocks.checkpoints.layouts.published_config import (
    WithDefaults,
    check_arguments,
    check_model,
    only,
    read_own,
    shown,
    stated,
    title,
    written_own,
)
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD
from mmblocks.trunks.llama_config import llama_config
from mmblocks.trunks.llama_published import published_llama

VISION: dict[str, Any] = {
    "image_size": 384,
    "patch_size": 16,
    "dim": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "mlp_dim": 4096,
    "activation": "gelu",
    "fit": "pad",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
"""The tower of every published Janus: SigLIP-L/16 for 384 pixels, as timm computes it."""

_NAME = "siglip_large_patch16_384"
_SIZES = ("patch_size", "dim", "num_heads", "mlp_dim")
"""What that name says; a tower of other sizes has entries of their own names beside it, as no published file has."""

_LANGUAGE = {"rms_norm_eps": 1e-6, "vocab_size": 32000, "num_attention_heads": 32, "num_hidden_layers": 32}
_LANGUAGE |= {"hidden_size": 4096, "intermediate_size": 11008}
"""Of a language model whose config does not name them: what transformers' LlamaConfig has."""


def vision_of(arguments: Arguments) -> dict[str, Any]:
    """All arguments of the tower."""
    return {**VISION, **(arguments["vision"] or {})}


def _language(config: Mapping[str, Any]) -> dict[str, Any]:
    sized = WithDefaults(config, _LANGUAGE)
    arguments = llama_config(sized, models=("llama",))
    del arguments["qk_norm"]
    return {"vocab_size": sized["vocab_size"], **arguments}


def _check_trunk(arguments: Arguments) -> None:
    check_arguments(arguments, qk_norm=False, qkv_bias=False, rope_sections=None, rope_dtype=None)


def _part(config: Mapping[str, Any], name: str, model: str, cls: str) -> Mapping[str, Any]:
    """The entries of one part in the authors' config, which names its class."""
    part = config[name]
    only(part, "cls", cls)
    only(part, "model_type", model)
    params: Mapping[str, Any] = part["params"]
    return params


def _aligner(config: Mapping[str, Any], kind: str, width: int, dim: int) -> int:
    params = _part(config, f"{kind}_config", kind, "MlpProjector")
    only(params, "projector_type", "mlp_gelu")
    only(params, "input_dim", width)
    only(params, "n_embed", dim)
    return int(params.get("depth", 1))


def janus_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' config."""
    check_model(config, "multi_modality", "MultiModalityCausalLM")
    language = _language(config["language_config"])
    only(config["language_config"], "tie_word_embeddings", False)
    dim = language["dim"]
    tower = _part(config, "vision_config", "vision", "CLIPVisionTower")
    only(tower, "model_name", _NAME)
    for name in ("select_layers", "pixel_mean", "pixel_std"):
        only(tower, name, None)
    layer = stated(tower, "select_layer", -2)
    vision = {
        "image_size": stated(tower, "image_size", 336),
        **read_own(tower, {name: VISION[name] for name in _SIZES}),
        "num_layers": layer if layer > 0 else VISION["num_layers"] + 1 + layer,
    }
    codes = _part(config, "gen_vision_config", "gen_vision", "VQ-16")
    head = _part(config, "gen_head_config", "gen_head", "vision_head")
    only(head, "image_token_size", codes["image_token_size"])
    only(head, "n_embed", dim)
    return {
        **language,
        "tie_embeddings": False,
        "vision": vision,
        "aligner_layers": _aligner(config, "aligner", vision["dim"], dim),
        "num_codes": codes["image_token_size"],
        "code_dim": codes["n_embed"],
        "code_layers": _aligner(config, "gen_aligner", codes["n_embed"], dim),
        "head_dim_codes": head["image_token_embed"],
    }


def published_janus(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: what the authors' code does not have.
    """
    _check_trunk(arguments)
    check_arguments(arguments, tie_embeddings=False)
    vision, dim = vision_of(arguments), arguments["dim"]
    check_arguments(vision, activation="gelu")
    if not 1 <= vision["num_layers"] <= VISION["num_layers"]:
        raise ValueError(
            f"vision has num_layers {vision['num_layers']}; accepted in the layout 'janus': 1 to {VISION['num_layers']}"
        )

    def aligner(kind: str, layers: int, width: int) -> dict[str, Any]:
        params = {"depth": layers, "input_dim": width, "n_embed": dim, "projector_type": "mlp_gelu"}
        return {"cls": "MlpProjector", "model_type": kind, "params": params}

    codes = {"image_token_size": arguments["num_codes"], "n_embed": arguments["code_dim"]}
    tower = {
        "image_size": vision["image_size"],
        "model_name": _NAME,
        "select_feature": "same",
        "select_layer": vision["num_layers"] - 1 - VISION["num_layers"],
        **written_own(vision, {name: VISION[name] for name in _SIZES}),
    }
    head = {**codes, "image_token_embed": arguments["head_dim_codes"] or dim, "n_embed": dim}
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": tower},
        "aligner_config": aligner("aligner", arguments["aligner_layers"], vision["dim"]),
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": codes},
        "gen_aligner_config": aligner("gen_aligner", arguments["code_layers"], arguments["code_dim"]),
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head},
        "language_config": published_llama(arguments, model_type="llama", architecture="LlamaForCausalLM"),
    }


def transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' names and defaults."""
    check_model(config, "janus")
    language, vision, codes = _language(config["text_config"]), config["vision_config"], config["vq_config"]
    check_model(vision, "janus_vision_model")
    check_model(codes, "janus_vqgan")
    dim, width = language["dim"], stated(vision, "hidden_size", 1024)
    tower = {
        "image_size": stated(vision, "image_size", 384),
        "patch_size": stated(vision, "patch_size", 16),
        "dim": width,
        "num_layers": stated(vision, "num_hidden_layers", 24),
        "num_heads": stated(vision, "num_attention_heads", 16),
        "mlp_dim": int(width * stated(vision, "mlp_ratio", 4.0)),
    }
    only(vision, "num_image_tokens", (tower["image_size"] // tower["patch_size"]) ** 2)
    for entry, value in (("layer_norm_eps", 1e-6), ("num_channels", 3), ("attention_bias", True), ("use_qk_norm", False)):
        only(vision, entry, value)
    for part in (vision, codes):
        only(part, "hidden_act", "gelu")
        if stated(part, "projection_dim", 2048) != dim:
            raise ValueError(f"{title(part, 'projection_dim')} is {shown(part.get('projection_dim'))}; accepted: {dim}")
    if stated(codes, "image_token_embed_dim", 2048) != dim:
        raise ValueError(f"{title(codes, 'image_token_embed_dim')} is {shown(codes.get('image_token_embed_dim'))}; accepted: {dim}")
    return {
        **language,
        "tie_embeddings": stated(config, "tie_word_embeddings", False),
        "vision": tower,
        "aligner_layers": stated(vision, "depth", 2),
        "num_codes": stated(codes, "num_embeddings", 16384),
        "code_dim": stated(codes, "embed_dim", 8),
        "code_layers": stated(codes, "num_hidden_layers", 2),
    }


def published_transformers(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: what transformers' class does not have.
    """
    _check_trunk(arguments)
    vision, dim = vision_of(arguments), arguments["dim"]
    check_arguments(vision, activation="gelu")
    if arguments["head_dim_codes"] not in (None, dim):
        raise ValueError(f"head_dim_codes is {arguments['head_dim_codes']}; accepted in the layout 'janus-transformers': {dim}")
    ratio = vision["mlp_dim"] / vision["dim"]
    if int(vision["dim"] * ratio) != vision["mlp_dim"]:
        raise ValueError(
            f"vision has mlp_dim {vision['mlp_dim']}; accepted in the layout 'janus-transformers': a multiple of its dim"
        )
    return {
        "model_type": "janus",
        "architectures": ["JanusForConditionalGeneration"],
        "text_config": published_llama(arguments, model_type="llama", architecture="LlamaModel"),
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": vision["dim"],
            "num_hidden_layers": vision["num_layers"],
            "num_attention_heads": vision["num_heads"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "mlp_ratio": ratio,
            "num_image_tokens": (vision["image_size"] // vision["patch_size"]) ** 2,
            "projection_dim": dim,
            "depth": arguments["aligner_layers"],
            "hidden_act": "gelu",
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "num_embeddings": arguments["num_codes"],
            "embed_dim": arguments["code_dim"],
            "projection_dim": dim,
            "image_token_embed_dim": dim,
            "num_hidden_layers": arguments["code_layers"],
            "hidden_act": "gelu",
        },
        "tie_word_embeddings": arguments["tie_embeddings"],
    }


def _images(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """What the authors' image processor reads. Its class has CLIP's mean where the file names none."""
    check_processor(entries, "VLMImageProcessor")
    only(entries, "min_size", 14)
    found = {"image_size": square(entries, "image_size", 384), "fit": "pad"}
    return {"vision": {**(arguments["vision"] or {}), **found, **normalisation(entries, mean=CLIP_MEAN, std=CLIP_STD)}}


def _published_images(arguments: Arguments) -> dict[str, Any]:
    vision = vision_of(arguments)
    check_arguments(vision, fit="pad")
    pixels = published_normalisation(vision["mean"], vision["std"])
    del pixels["do_rescale"]
    return {"image_processor_type": "VLMImageProcessor", "image_size": vision["image_size"], "min_size": 14, **pixels}


def _transformers_images(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """What transformers' JanusImageProcessor reads."""
    check_processor(entries, "JanusImageProcessor")
    for name in ("do_resize", "do_pad"):
        only(entries, name, True)
    only(entries, "resample", PILImage.Resampling.BICUBIC)
    only(entries, "min_size", 14)
    found = {"image_size": square(entries, "size", 384), "fit": "pad-rounded"}
    return {"vision": {**(arguments["vision"] or {}), **found, **normalisation(entries, mean=CLIP_MEAN, std=CLIP_STD)}}


def _published_transformers_images(arguments: Arguments) -> dict[str, Any]:
    vision = vision_of(arguments)
    check_arguments(vision, fit="pad-rounded")
    side = vision["image_size"]
    return {
        "image_processor_type": "JanusImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": int(PILImage.Resampling.BICUBIC),
        "min_size": 14,
        "do_pad": True,
        **published_normalisation(vision["mean"], vision["std"]),
    }


_COLOUR = ("background_color",)
"""What follows from the mean, whatever a file says."""

JANUS_IMAGES = Preprocessor(_images, _published_images, harmless=_COLOUR)
TRANSFORMERS_IMAGES = Preprocessor(_transformers_images, _published_transformers_images, harmless=_COLOUR)
