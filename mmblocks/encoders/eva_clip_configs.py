"""What the configs of EVA-CLIP mean, and the way back: those of the authors' package, and of the repositories on the Hub.

The package has its configs inside, by the names of the models; no file of weights has one beside it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.published_config import check_arguments, only, shown, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.activations import published_activation, transformers_name
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD
from mmblocks.layers.towers.eva_layouts import BESIDE_TOWERS, TOWER_HARMLESS, complete_tower, eva_tower_arguments, eva_tower_config

Part = Literal["clip", "vision", "text"]
Reader = Callable[..., dict[str, Any]]


def vision_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPVision`` from a model's config as the authors' code has it; none from an empty one."""
    if not published:
        return {}
    vision = published["vision_cfg"]
    return {
        "tower": eva_tower_arguments(vision),
        "embed_dim": published.get("embed_dim"),
        # The newer of the authors' two packages, that of the towers with RMS norms, ties one bias to the other.
        "head_bias": vision.get("qkv_bias", True) or "use_rms_norm" not in vision,
        "pooling": "mean" if vision.get("global_average_pool") else "class",
        "patch_dropout": stated(vision, "patch_dropout", 0.0),
    }


def vision_config(arguments: Arguments) -> dict[str, Any]:
    """The way back. What features are taken, and whether images have any size, is not in it.

    Raises:
        ValueError: a tower that the authors' code cannot build.
    """
    tower = complete_tower(arguments["tower"])
    given = _with_defaults(arguments, head_bias=True, pooling="class", patch_dropout=0.0, embed_dim=None, **_CLIP)
    check_arguments(given, **_CLIP)
    config = eva_tower_config(tower)
    if given["head_bias"] == tower["qkv_bias"]:
        config.setdefault("use_rms_norm", False)
    elif "use_rms_norm" in config or not given["head_bias"]:
        check_arguments(given, head_bias=tower["qkv_bias"])
    pooling = {"global_average_pool": given["pooling"] == "mean", "patch_dropout": given["patch_dropout"]}
    return {"embed_dim": given["embed_dim"], "vision_cfg": config | pooling}


def text_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPText`` likewise."""
    if not published:
        return {}
    text = published["text_cfg"]
    if text.get("hf_model_name"):
        raise ValueError(f"hf_model_name is {text['hf_model_name']!r}; accepted: none, for the text tower of EVA-CLIP itself")
    return {
        "embed_dim": published["embed_dim"],
        "dim": text.get("width", 512),
        "num_layers": text.get("layers", 12),
        "num_heads": text.get("heads", 8),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "causal": text.get("attn_mask", True),
        "layer_scale": text.get("ls_init_value"),
        "activation": "quick_gelu" if published.get("quick_gelu") else "gelu",
    }


def text_config(arguments: Arguments) -> dict[str, Any]:
    """The way back; raises as ``vision_config``."""
    given = _complete_text(arguments)
    check_arguments(given, norm_eps=1e-5, mlp_dim=4 * given["dim"])
    if given["activation"] != "quick_gelu":
        check_arguments(given, activation="gelu")
    names = {
        "width": "dim",
        "layers": "num_layers",
        "heads": "num_heads",
        "context_length": "context_length",
        "vocab_size": "vocab_size",
        "attn_mask": "causal",
        "ls_init_value": "layer_scale",
    }
    return {
        "embed_dim": given["embed_dim"],
        "quick_gelu": given["activation"] == "quick_gelu",
        "text_cfg": {theirs: given[ours] for theirs, ours in names.items()},
    }


def clip_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIP`` likewise."""
    if not published:
        return {}
    return {"vision": vision_arguments(published), "text": text_arguments(published)}


def clip_config(arguments: Arguments) -> dict[str, Any]:
    """The way back; raises as ``vision_config``."""
    return vision_config(_of(arguments["vision"])) | text_config(_of(arguments["text"]))


def vision_hub_arguments(published: Mapping[str, Any], *, head_bias: bool = False) -> dict[str, Any]:
    """Arguments of an ``EVACLIPVision`` from the config of a repository on the Hub; it is silent about the head's bias."""
    _check_model(published)
    vision = stated(published, "vision_config", {})
    for name in ("use_rope", "use_swiglu_mlp", "use_sub_ln"):
        only(vision, name, False)
    only(vision, "model_type", "clip_vision_model", "evaclip_vision_model")
    only(vision, "num_channels", 3)
    only(vision, "k_bias", False)
    qkv_bias = vision.get("q_bias", True)
    only(vision, "v_bias", qkv_bias)
    return {
        "tower": {
            "image_size": (vision.get("image_size", 224),) * 2,
            "patch_size": vision.get("patch_size", 32),
            "dim": vision.get("hidden_size", 768),
            "num_layers": vision.get("num_hidden_layers", 12),
            "num_heads": vision.get("num_attention_heads", 12),
            "mlp_dim": vision.get("intermediate_size", 3072),
            # All published towers without a bias of queries have RMS norms.
            "norm": "rms" if vision.get("use_rms_norm", not qkv_bias) else "layer",
            "norm_eps": vision.get("layer_norm_eps", 1e-5),
            "post_norm": bool(vision.get("post_layernorm")),
            "qkv_bias": qkv_bias,
            "activation": published_activation(vision, "hidden_act", "gelu"),
        },
        "embed_dim": published.get("projection_dim", 512),
        "head_bias": head_bias,
    }


def vision_hub_config(arguments: Arguments, *, head_bias: bool = False) -> dict[str, Any]:
    """The way back; raises as ``vision_config``."""
    tower = complete_tower(arguments["tower"])
    height = tower["image_size"][0]
    check_arguments(tower, image_size=(height, height), swiglu=False, attention_norm=False, rope=False, layer_scale=None)
    given = _with_defaults(arguments, head_bias=True, pooling="class", embed_dim=None)
    check_arguments(given, head_bias=head_bias, pooling="class")
    vision = {
        "model_type": "clip_vision_model",
        "image_size": height,
        "patch_size": tower["patch_size"],
        "hidden_size": tower["dim"],
        "num_hidden_layers": tower["num_layers"],
        "num_attention_heads": tower["num_heads"],
        "intermediate_size": tower["mlp_dim"],
        "use_rms_norm": tower["norm"] == "rms",
        "layer_norm_eps": tower["norm_eps"],
        "post_layernorm": tower["post_norm"],
        "q_bias": tower["qkv_bias"],
        "k_bias": False,
        "v_bias": tower["qkv_bias"],
        "hidden_act": transformers_name(tower["activation"]),
    }
    return {**_HUB_MODEL, "projection_dim": given["embed_dim"], "vision_config": vision}


def text_hub_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPText`` likewise."""
    _check_model(published)
    text = stated(published, "text_config", {})
    for name in ("use_rope", "use_swiglu_mlp", "use_sub_ln", "use_rms_norm", "post_layernorm"):
        only(text, name, False)
    for name in ("q_bias", "k_bias", "v_bias"):
        only(text, name, True)
    only(text, "model_type", "clip_text_model", "evaclip_text_model")
    return {
        "embed_dim": published.get("projection_dim", 512),
        "dim": text.get("hidden_size", 512),
        "num_layers": text.get("num_hidden_layers", 12),
        "num_heads": text.get("num_attention_heads", 8),
        "mlp_dim": text.get("intermediate_size", 2048),
        "context_length": text.get("max_position_embeddings", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "activation": published_activation(text, "hidden_act", "gelu"),
        "norm_eps": text.get("layer_norm_eps", 1e-5),
    }


def text_hub_config(arguments: Arguments) -> dict[str, Any]:
    """The way back; raises as ``vision_config``."""
    given = _complete_text(arguments)
    check_arguments(given, causal=True, layer_scale=None)
    text = {
        "model_type": "clip_text_model",
        "hidden_size": given["dim"],
        "num_hidden_layers": given["num_layers"],
        "num_attention_heads": given["num_heads"],
        "intermediate_size": given["mlp_dim"],
        "max_position_embeddings": given["context_length"],
        "vocab_size": given["vocab_size"],
        "hidden_act": transformers_name(given["activation"]),
        "layer_norm_eps": given["norm_eps"],
    }
    return {**_HUB_MODEL, "projection_dim": given["embed_dim"], "text_config": text}


def hub_arguments(published: Mapping[str, Any], *, head_bias: bool = False) -> dict[str, Any]:
    """Arguments of an ``EVACLIP`` likewise."""
    return {"vision": vision_hub_arguments(published, head_bias=head_bias), "text": text_hub_arguments(published)}


def hub_config(arguments: Arguments, *, head_bias: bool = False) -> dict[str, Any]:
    """The way back; raises as ``vision_config``."""
    return vision_hub_config(_of(arguments["vision"]), head_bias=head_bias) | text_hub_config(_of(arguments["text"]))


_CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
_HUB_MODEL = {"model_type": "clip", "architectures": ["EvaCLIPModel"]}


def _check_model(published: Mapping[str, Any]) -> None:
    """EVA-CLIP calls itself a "clip" on the Hub; CLIP itself has other defaults."""
    only(published, "model_type", "clip", "evaclip")
    for name in stated(published, "architectures", ()):
        if not str(name).startswith("EvaCLIP"):
            raise ValueError(f"architectures names {shown(name)}; accepted: EvaCLIPModel")


def _of(part: Arguments | Block) -> Arguments:
    """Arguments of a tower that is given as a Block or as its arguments."""
    return part if isinstance(part, Mapping) else part.config


def _with_defaults(arguments: Arguments, **defaults: object) -> dict[str, Any]:
    return {**defaults, **arguments}


def _complete_text(arguments: Arguments) -> dict[str, Any]:
    sizes = {"dim": 768, "num_layers": 12, "num_heads": 12, "context_length": 77, "vocab_size": 49408, "mlp_dim": None}
    rest = {"causal": True, "layer_scale": None, "activation": "gelu", "norm_eps": 1e-5}
    given = _with_defaults(arguments, **sizes, **rest)
    return given | {"mlp_dim": given["mlp_dim"] or 4 * given["dim"]}


_TEXT_HARMLESS = tuple(
    f"text_cfg.{name}"
    for name in (
        *("fusedLN", "xattn", "hf_tokenizer_name", "hf_model_pretrained", "proj", "pooler_type", "masked_language_modeling"),
    )
)
"""Of a text tower's config: which kernels compute it, and what those of other libraries have."""

_HUB_HARMLESS = ("logit_scale_init_value", "tie_word_embeddings")
_HUB_VISION = tuple(
    f"vision_config.{name}" for name in ("projection_dim", "tie_word_embeddings", "rope_theta", "pretrained_seq_len")
)
_HUB_TEXT = tuple(f"text_config.{name}" for name in ("projection_dim", "tie_word_embeddings", "rope_theta", "pretrained_seq_len"))

AUTHORS: dict[Part, tuple[str, ...]] = {
    "clip": (*BESIDE_TOWERS, *TOWER_HARMLESS, *_TEXT_HARMLESS),
    # The image tower has always the exact GELU.
    "vision": (*BESIDE_TOWERS, *TOWER_HARMLESS, "text_cfg.*", "quick_gelu"),
    "text": (*BESIDE_TOWERS, *_TEXT_HARMLESS, "vision_cfg.*"),
}
"""Entries of the authors' configs that change no numbers of a part."""

HUB: dict[Part, tuple[str, ...]] = {
    "clip": (*_HUB_HARMLESS, *_HUB_VISION, *_HUB_TEXT),
    "vision": (*_HUB_HARMLESS, *_HUB_VISION, "text_config.*"),
    "text": (*_HUB_HARMLESS, *_HUB_TEXT, "vision_config.*"),
}
"""Likewise of the Hub's."""

CONFIGS: dict[Part, tuple[Reader, Reader]] = {
    "clip": (clip_arguments, clip_config),
    "vision": (vision_arguments, vision_config),
    "text": (text_arguments, text_config),
}
"""The authors' config to arguments, and back."""

HUB_CONFIGS: dict[Part, tuple[Reader, Reader]] = {
    "clip": (hub_arguments, hub_config),
    "vision": (vision_hub_arguments, vision_hub_config),
    "text": (text_hub_arguments, text_hub_config),
}
"""Likewise the Hub's."""
