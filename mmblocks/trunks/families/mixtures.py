"""Qwen2-MoE and Qwen3-MoE: mixtures of experts, with dense layers between where the config says so."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import stated
from mmblocks.layers.activations import published_activation
from mmblocks.trunks.families.names import ATTENTION, BEFORE, EXPERTS, GATED_MLP, HEAD_NORMS, LAST, SHARED_EXPERT
from mmblocks.trunks.families.reading import arguments_of, attention_of, check_named, rotary_of
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.mixture_of_experts import MixtureOfExperts
from mmblocks.trunks.parts.norms import Norm

QWEN3_MOE_RULES = (*ATTENTION, *HEAD_NORMS, *GATED_MLP, *EXPERTS, *BEFORE, *LAST)
QWEN2_MOE_RULES = (*ATTENTION, *GATED_MLP, *EXPERTS, *SHARED_EXPERT, *BEFORE, *LAST)

DENSE, MIXTURE = "dense", "mixture"


def qwen3_moe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3-MoE's config as ``Decoder`` arguments."""
    check_named(config, "qwen3_moe")
    bias = stated(config, "attention_bias", False)
    attention = attention_of(
        config,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=Norm(eps=config["rms_norm_eps"]),
        rotary=rotary_of(config),
        window=config.get("sliding_window") if stated(config, "use_sliding_window", False) else None,
    )
    return _mixed(config, attention, shared_dim=None)


def qwen2_moe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2-MoE's config as ``Decoder`` arguments; without windows, as published."""
    check_named(config, "qwen2_moe")
    attention = attention_of(config, qkv_bias=stated(config, "qkv_bias", True), rotary=rotary_of(config))
    if stated(config, "use_sliding_window", False):
        raise ValueError("use_sliding_window is True; accepted: False")
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            raise ValueError(f"layer_types has {kind!r}; accepted: 'full_attention'")
    return _mixed(config, attention, shared_dim=config["shared_expert_intermediate_size"])


def _mixed(config: Mapping[str, Any], attention: Attention, shared_dim: int | None) -> dict[str, Any]:
    activation = published_activation(config, "hidden_act", "silu")
    norm = Norm(eps=config["rms_norm_eps"])
    experts = config["num_local_experts"] if config.get("num_local_experts") is not None else config["num_experts"]
    mixture = MixtureOfExperts(
        hidden_dim=config["moe_intermediate_size"],
        num_experts=experts,
        experts_per_token=config["num_experts_per_tok"],
        activation=activation,
        normalize=stated(config, "norm_topk_prob", False),
        shared_dim=shared_dim,
    )
    dense = GatedMLP(hidden_dim=config["intermediate_size"], activation=activation)
    layers = {name: Layer(mixer=attention, feed_forward=part, norm=norm) for name, part in ((MIXTURE, mixture), (DENSE, dense))}
    step, dense_layers = stated(config, "decoder_sparse_step", 1), tuple(config.get("mlp_only_layers") or ())
    types = [
        MIXTURE if layer not in dense_layers and experts > 0 and (layer + 1) % step == 0 else DENSE
        for layer in range(config["num_hidden_layers"])
    ]
    return arguments_of(config, layers, types)
