"""Families that differ from Llama in biases, factors, layers without rotation, or pairs of channels that are turned."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import only, plain, stated
from mmblocks.layers.activations import published_activation
from mmblocks.trunks.families.names import AFTER, ATTENTION, BEFORE, FUSED_MLP, GATED_MLP, HEAD_NORMS, LAST, rules
from mmblocks.trunks.families.reading import FULL, SLIDING, arguments_of, attention_of, check_named, rotary_of, types_of
from mmblocks.trunks.layer import Layer, NormPlace
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP, GatedMLP
from mmblocks.trunks.parts.norms import Norm

LLAMA_LIKE_RULES = (*ATTENTION, *GATED_MLP, *BEFORE, *LAST)
GLM_RULES = (*ATTENTION, *FUSED_MLP, *BEFORE, *LAST)
GLM4_RULES = (*GLM_RULES, *rules(post_self_attn_layernorm="attention_post_norm", post_mlp_layernorm="mlp_post_norm"))
OLMO2_RULES = (*ATTENTION, *HEAD_NORMS, *GATED_MLP, *AFTER, *LAST)


def granite_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Granite's config as ``Decoder`` arguments: embeddings, scores and both branches are multiplied."""
    check_named(config, "granite")
    bias = stated(config, "attention_bias", False)
    scale = stated(config, "attention_multiplier", 1.0)
    attention = attention_of(config, qkv_bias=bias, output_bias=bias, rotary=rotary_of(config), scale=scale)
    layer = _layer(config, attention, residual_scale=stated(config, "residual_multiplier", 1.0))
    return _one_kind(config, layer, embed_scale=stated(config, "embedding_multiplier", 1.0))


def minicpm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """MiniCPM's config as ``Decoder`` arguments: branches count less, the more layers there are.

    ``scale_emb`` multiplies the embeddings of text alone, and ``dim_model_base`` divides what the head reads: they are theirs.
    Source: MiniCPM (arXiv 2404.06395; OpenBMB/MiniCPM).
    """
    check_named(config, "minicpm")
    only(config, "attention_bias", False)
    scale = stated(config, "scale_depth", 1) / config["num_hidden_layers"] ** 0.5
    return _one_kind(config, _layer(config, attention_of(config, rotary=rotary_of(config)), residual_scale=scale))


def smollm3_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """SmolLM3's config as ``Decoder`` arguments: every fourth layer turns no queries and keys."""
    check_named(config, "smollm3")
    count, bias = config["num_hidden_layers"], stated(config, "attention_bias", False)
    interval = stated(config, "no_rope_layer_interval", 4)
    turned = plain(stated(config, "no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(count)]))
    windowed = stated(config, "use_sliding_window", False)
    window = config.get("sliding_window") if windowed else None
    given = config.get("layer_types")
    types = [FULL if window is None or flag else SLIDING for flag in turned] if given is None else types_of(config)
    layers, kinds = {}, []
    for kind, flag in zip(types, turned, strict=True):
        limit = window if kind == SLIDING else None
        name = ("rotary" if flag else "no_rotary") + ("" if limit is None else "_sliding")
        rotary = rotary_of(config, theta=2e6) if flag else None
        attention = attention_of(config, qkv_bias=bias, output_bias=bias, rotary=rotary, window=limit)
        layers[name] = _layer(config, attention)
        kinds.append(name)
    return arguments_of(config, layers, kinds)


def helium_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Helium's config as ``Decoder`` arguments: neighbouring channels are turned together."""
    check_named(config, "helium")
    bias = stated(config, "attention_bias", False)
    attention = attention_of(config, head_dim=128, qkv_bias=bias, rotary=rotary_of(config, theta=1e5, neighbours=True))
    return _one_kind(config, _layer(config, attention))


def ernie_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ernie 4.5's config as ``Decoder`` arguments: as Helium, with biases everywhere or nowhere."""
    check_named(config, "ernie4_5")
    bias = stated(config, "use_bias", False)
    rotary = rotary_of(config, theta=500000.0, neighbours=True)
    attention = attention_of(config, head_dim=128, qkv_bias=bias, output_bias=bias, rotary=rotary)
    return _one_kind(config, _layer(config, attention, bias=bias))


def seed_oss_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Seed-OSS's config as ``Decoder`` arguments: biases on q, k and v."""
    check_named(config, "seed_oss")
    bias, output_bias = stated(config, "attention_bias", True), stated(config, "attention_out_bias", False)
    attention = attention_of(config, head_dim=128, qkv_bias=bias, output_bias=output_bias, rotary=rotary_of(config))
    return _one_kind(config, _layer(config, attention))


def arcee_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arcee's config as ``Decoder`` arguments: a feed-forward part without a gate, and squared ReLU."""
    check_named(config, "arcee")
    bias = stated(config, "attention_bias", False)
    attention = attention_of(config, qkv_bias=bias, output_bias=bias, rotary=rotary_of(config))
    activation = published_activation(config, "hidden_act", "relu2")
    mlp = MLP(hidden_dim=config["intermediate_size"], activation=activation, bias=stated(config, "mlp_bias", False))
    return _one_kind(config, Layer(mixer=attention, feed_forward=mlp, norm=Norm(eps=config["rms_norm_eps"])))


def glm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """GLM-4's config as ``Decoder`` arguments: half of each head is turned, in neighbouring pairs; later norms on both sides."""
    check_named(config, "glm", "glm4")
    bias = stated(config, "attention_bias", False)
    rotary = rotary_of(config, share=0.5, neighbours=True)
    attention = attention_of(config, head_dim=128, qkv_bias=bias, rotary=rotary)
    return _one_kind(config, _layer(config, attention, norm_place="both" if config["model_type"] == "glm4" else "before"))


def olmo2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 2's and OLMo 3's configs as ``Decoder`` arguments: norms after both parts, and over all heads together."""
    check_named(config, "olmo2", "olmo3")
    third = config["model_type"] == "olmo3"
    types = types_of(config, every=4) if third else (FULL,) * config["num_hidden_layers"]
    windows = {FULL: None, SLIDING: stated(config, "sliding_window", 4096)} if third else {FULL: None}
    bias, norm = stated(config, "attention_bias", False), Norm(eps=config["rms_norm_eps"])
    fields: dict[str, Any] = {"qkv_bias": bias, "output_bias": bias, "qk_norm": norm, "qk_norm_over": "all_heads"}
    layers = {}
    for kind, window in windows.items():
        rotary = rotary_of(config, theta=500000.0 if third else 10000.0, layer_type=kind if third else None)
        layers[kind] = _layer(config, attention_of(config, rotary=rotary, window=window, **fields), norm_place="after")
    return arguments_of(config, layers, types)


def exaone4_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EXAONE 4's config as ``Decoder`` arguments: norms after both parts, and no rotation where there is no window."""
    check_named(config, "exaone4")
    window = config.get("sliding_window")
    types = types_of(config, every=stated(config, "sliding_window_pattern", 4) or None)
    norm = Norm(eps=config["rms_norm_eps"])
    layers = {
        kind: _layer(
            config,
            attention_of(
                config,
                rotary=rotary_of(config) if window is None or kind == SLIDING else None,
                window=window if kind == SLIDING else None,
                qk_norm=norm,
            ),
            norm_place="after",
        )
        for kind in (FULL, SLIDING)
    }
    return arguments_of(config, layers, types)


def _layer(
    config: Mapping[str, Any],
    attention: Attention,
    *,
    bias: bool = False,
    norm_place: NormPlace = "before",
    residual_scale: float = 1.0,
) -> Layer:
    mlp = GatedMLP(
        hidden_dim=config["intermediate_size"],
        activation=published_activation(config, "hidden_act", "silu"),
        bias=bias or stated(config, "mlp_bias", False),
    )
    norm = Norm(eps=config["rms_norm_eps"])
    return Layer(mixer=attention, feed_forward=mlp, norm=norm, norm_place=norm_place, residual_scale=residual_scale)


def _one_kind(config: Mapping[str, Any], layer: Layer, **more: object) -> dict[str, Any]:
    return arguments_of(config, {FULL: layer}, (FULL,) * config["num_hidden_layers"], **more)
