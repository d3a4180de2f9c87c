"""Sliding windows of Llama's nearest family: Mistral, Ministral, Qwen2, Qwen3 and Phi-3."""

from collections.abc import Mapping
from typing import Any

from mmblocks.trunks.families.reading import FULL, SLIDING, arguments_of
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.llama import llama_layer, with_attention
from mmblocks.trunks.llama_config import llama_config, model_of, windows_of
from mmblocks.trunks.parts.attention import Attention


def windowed_config(
    config: Mapping[str, Any], *, models: tuple[str, ...], qk_norm: bool = False, qkv_bias: bool = False
) -> dict[str, Any]:
    """A config as ``Decoder`` arguments: those of ``llama_layer``, or described layers where some have a window.

    Args:
        config: the config.
        models: as for ``llama_config``.
        qk_norm: norms of heads; that they are there is not in the config.
        qkv_bias: likewise biases on q, k and v.
    """
    arguments = {**llama_config(config, models=models, qk_norm=qk_norm, windowed=True), "qkv_bias": qkv_bias}
    windows = windows_of(config, model_of(config, models))
    if not any(windows):
        return arguments
    plain = llama_layer(**{name: value for name, value in arguments.items() if name not in ("dim", "num_layers")})
    layers = {FULL: plain, SLIDING: with_attention(plain, window=next(filter(None, windows)))}
    return arguments_of(config, layers, [FULL if window is None else SLIDING for window in windows])


def heads_of(arguments: Mapping[str, Any]) -> Attention:
    """The attention of a decoder's arguments, which is alike in all layers as far as heads go.

    Raises:
        TypeError: layers with another mixer.
    """
    layers = arguments.get("layers")
    if layers is None:
        kv_heads, head_dim = arguments.get("num_kv_heads"), arguments.get("head_dim")
        return Attention(num_heads=arguments["num_heads"], num_kv_heads=kv_heads, head_dim=head_dim)
    first = next(iter(layers.values())) if isinstance(layers, Mapping) else layers
    if not isinstance(first, Layer) or not isinstance(first.mixer, Attention):
        raise TypeError(f"layers is {layers}; accepted: layers with Attention")
    return first.mixer
