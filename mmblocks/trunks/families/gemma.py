"""Gemma 1, 2 and 3: norms scaled by 1 + weight, GeGLU, and in the later ones soft caps, norms on both sides, and windows.

Their embeddings are scaled by the square root of the width: that is ``TextEmbedding``'s, and what comes of images is not scaled.
"""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import only, stated
from mmblocks.layers.activations import published_activation
from mmblocks.trunks.families.names import ATTENTION, BEFORE, BOTH, GATED_MLP, HEAD_NORMS, LAST
from mmblocks.trunks.families.reading import FULL, SLIDING, arguments_of, attention_of, check_named, rotary_of, types_of
from mmblocks.trunks.layer import Layer, NormPlace
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.rotary import Rotary

HEAD_DIM = 256
"""Where none is named."""

GEMMA_RULES = (*ATTENTION, *GATED_MLP, *BEFORE, *LAST)
GEMMA2_RULES = (*ATTENTION, *GATED_MLP, *BOTH, *LAST)
GEMMA3_RULES = (*GEMMA2_RULES, *HEAD_NORMS)

GEMMA_HARMLESS = (
    "final_logit_softcapping",  # the head's
    "cache_implementation",
    "_sliding_window_pattern",  # says again what layer_types says
)


def gemma_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma's config as ``Decoder`` arguments."""
    check_named(config, "gemma")
    only(config, "attention_bias", False)
    only(config, "use_bidirectional_attention", False)
    # Older files name plain GELU in hidden_act, and mean its tanh form, as the entry that came later says.
    name = "hidden_activation" if config.get("hidden_activation") is not None else "hidden_act"
    if name == "hidden_act":
        only(config, "hidden_act", "gelu", "gelu_pytorch_tanh")
        activation = "gelu_tanh"
    else:
        only(config, "hidden_act", "gelu", "gelu_pytorch_tanh", config["hidden_activation"])
        activation = published_activation(config, name, "gelu_pytorch_tanh")
    attention = attention_of(config, head_dim=HEAD_DIM, rotary=rotary_of(config))
    layer = _layer(config, attention, activation, "before")
    return arguments_of(config, {FULL: layer}, (FULL,) * config["num_hidden_layers"])


def gemma2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2's config as ``Decoder`` arguments."""
    check_named(config, "gemma2")
    only(config, "sliding_window_size", config.get("sliding_window", 4096))  # said twice in the first files
    rotary, softcap = rotary_of(config), config.get("attn_logit_softcapping", 50.0)
    return _windowed(config, types_of(config, every=2), {FULL: rotary, SLIDING: rotary}, softcap=softcap)


def gemma3_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3's text config as ``Decoder`` arguments; layers with a window have rotary angles of their own base."""
    check_named(config, "gemma3_text")
    types = types_of(config, every=stated(config, "sliding_window_pattern", 6))
    local = config.get("rope_local_base_freq")
    rotary = {FULL: rotary_of(config, theta=1e6, layer_type=FULL), SLIDING: rotary_of(config, layer_type=SLIDING)}
    if local is not None or SLIDING not in (config.get("rope_parameters") or {}):
        rotary[SLIDING] = Rotary(theta=10000.0 if local is None else local)
    only(config, "attn_logit_softcapping", None)  # which transformers does not read
    return _windowed(config, types, rotary, qk_norm=_norm(config))


def _windowed(
    config: Mapping[str, Any],
    types: tuple[str, ...],
    rotary: Mapping[str, Rotary],
    **fields: Any,  # of Attention
) -> dict[str, Any]:
    only(config, "attention_bias", False)
    only(config, "use_bidirectional_attention", False)
    activation = published_activation(config, "hidden_activation", "gelu_pytorch_tanh")
    only(config, "hidden_act", "gelu", "gelu_pytorch_tanh")  # which no code reads beside hidden_activation
    scale = stated(config, "query_pre_attn_scalar", 256) ** -0.5
    windows = {FULL: None, SLIDING: config.get("sliding_window", 4096)}
    layers = {
        kind: _layer(
            config,
            attention_of(config, head_dim=HEAD_DIM, rotary=rotary[kind], window=window, scale=scale, **fields),
            activation,
            "both",
        )
        for kind, window in windows.items()
    }
    return arguments_of(config, layers, types)


def _norm(config: Mapping[str, Any]) -> Norm:
    return Norm(eps=config["rms_norm_eps"], one_plus=True)


def _layer(config: Mapping[str, Any], attention: Attention, activation: str, norm_place: NormPlace) -> Layer:
    mlp = GatedMLP(hidden_dim=config["intermediate_size"], activation=activation)
    return Layer(mixer=attention, feed_forward=mlp, norm=_norm(config), norm_place=norm_place)
