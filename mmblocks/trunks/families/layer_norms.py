"""Families with LayerNorm, often with attention and feed-forward part in parallel: Cohere, StableLM, Phi, StarCoder 2, OLMo."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Rule
from mmblocks.checkpoints.layouts.published_config import only, stated
from mmblocks.layers.activations import published_activation
from mmblocks.trunks.families.names import ATTENTION, BEFORE, GATED_MLP, HEAD_NORMS, LAST, ONE, rules
from mmblocks.trunks.families.reading import FULL, SLIDING, arguments_of, attention_of, check_named, rotary_of, types_of
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.feed_forward import MLP, GatedMLP
from mmblocks.trunks.parts.norms import Norm

COHERE_RULES = (*ATTENTION, *HEAD_NORMS, *GATED_MLP, *ONE, *LAST)
STABLELM_RULES = (*ATTENTION, *GATED_MLP, *BEFORE, *LAST)
STARCODER2_RULES = (*ATTENTION, *rules(mlp__c_fc="mlp.up", mlp__c_proj="mlp.down"), *BEFORE, *LAST)
OLMO_RULES = (*ATTENTION, *GATED_MLP)
PHI_RULES = (
    *(rule for rule in ATTENTION if "o_proj" not in rule.theirs),
    *rules(self_attn__dense="attention.output", self_attn__q_layernorm="attention.query_norm"),
    *rules(self_attn__k_layernorm="attention.key_norm", mlp__fc1="mlp.up", mlp__fc2="mlp.down"),
    *ONE,
    Rule("model.final_layernorm.*", "norm.*"),
)


_AS_PUBLISHED = {
    "use_parallel_block": True,
    "use_gated_activation": True,
    "rotary_pct": 1.0,
    "position_embedding_type": "rope_gptj",
    "order_of_interleaved_layers": "local_attn_first",
}
"""What Command R7B's file says besides, in words of its training code."""


def cohere_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Cohere's Command R as ``Decoder`` arguments; Command R7B has windows, and no rotation in layers without one."""
    check_named(config, "cohere", "cohere2")
    second = config["model_type"] == "cohere2"
    for name, value in _AS_PUBLISHED.items():
        only(config, name, value)
    bias = stated(config, "attention_bias", False)
    norm = Norm(kind="layer", eps=config["layer_norm_eps"])
    heads = norm if not second and stated(config, "use_qk_norm", False) else None
    rotary = rotary_of(config, theta=10000.0 if second else 500000.0, neighbours=True)
    types = (
        types_of(config, every=stated(config, "sliding_window_pattern", stated(config, "layer_switch", 4)))
        if second
        else (FULL,) * config["num_hidden_layers"]
    )
    window = config.get("sliding_window", 4096) if second else None
    mlp = _gated(config)
    layers = {
        kind: Layer(
            mixer=attention_of(
                config,
                qkv_bias=bias,
                output_bias=bias,
                qk_norm=heads,
                qk_norm_over="each_head",
                rotary=None if second and kind == FULL else rotary,
                window=window if kind == SLIDING else None,
            ),
            feed_forward=mlp,
            norm=norm,
            parallel=True,
        )
        for kind in (FULL, SLIDING)
    }
    return arguments_of(config, layers, types)


def stablelm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """StableLM 2's config as ``Decoder`` arguments; a quarter of each head is turned."""
    check_named(config, "stablelm")
    only(config, "qk_layernorm", False)
    only(config, "rotary_scaling_factor", 1.0)
    attention = attention_of(config, qkv_bias=stated(config, "use_qkv_bias", False), rotary=rotary_of(config, share=0.25))
    parallel = stated(config, "use_parallel_residual", False)
    norm = Norm(kind="layer", eps=config["layer_norm_eps"], bias=True)
    return _one_kind(config, Layer(mixer=attention, feed_forward=_gated(config), norm=norm, parallel=parallel))


def phi_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config of Phi-1, 1.5 and 2 as ``Decoder`` arguments; half of each head is turned."""
    check_named(config, "phi")
    norm = Norm(kind="layer", eps=config["layer_norm_eps"], bias=True)
    attention = attention_of(
        config,
        qkv_bias=True,
        output_bias=True,
        qk_norm=norm if stated(config, "qk_layernorm", False) else None,
        rotary=rotary_of(config, share=0.5),
    )
    activation = published_activation(config, "hidden_act", "gelu_new")
    mlp = MLP(hidden_dim=config["intermediate_size"], activation=activation)
    return _one_kind(config, Layer(mixer=attention, feed_forward=mlp, norm=norm, parallel=True))


def starcoder2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """StarCoder 2's config as ``Decoder`` arguments."""
    check_named(config, "starcoder2")
    only(config, "norm_type", "layer_norm")
    only(config, "mlp_type", "default")
    bias = stated(config, "use_bias", True)
    attention = attention_of(config, qkv_bias=bias, output_bias=bias, rotary=rotary_of(config), window=config.get("sliding_window"))
    activation = published_activation(config, "hidden_act", "gelu_pytorch_tanh")
    mlp = MLP(hidden_dim=config["intermediate_size"], activation=activation, bias=bias)
    norm = Norm(kind="layer", eps=config["norm_epsilon"], bias=True)
    return _one_kind(config, Layer(mixer=attention, feed_forward=mlp, norm=norm))


def olmo_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo's config as ``Decoder`` arguments: norms without weights."""
    check_named(config, "olmo")
    only(config, "clip_qkv", None)
    bias = stated(config, "attention_bias", False)
    attention = attention_of(config, qkv_bias=bias, output_bias=bias, rotary=rotary_of(config))
    norm = Norm(kind="layer", eps=1e-5, weight=False)
    return _one_kind(config, Layer(mixer=attention, feed_forward=_gated(config), norm=norm))


def _gated(config: Mapping[str, Any]) -> GatedMLP:
    activation = published_activation(config, "hidden_act", "silu")
    return GatedMLP(hidden_dim=config["intermediate_size"], activation=activation)


def _one_kind(config: Mapping[str, Any], layer: Layer) -> dict[str, Any]:
    return arguments_of(config, {FULL: layer}, (FULL,) * config["num_hidden_layers"])
