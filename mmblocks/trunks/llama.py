"""The layer of the Llama family by its usual arguments: the shorthand of ``Decoder`` and of the trunks that are made of it."""

from dataclasses import replace
from inspect import signature
from typing import Any, TypedDict

from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.rotary import Rotary


class LlamaArguments(TypedDict, total=False):
    """The arguments of ``llama_layer``, for the signatures of classes that pass them on; a test compares the two."""

    num_heads: int
    mlp_dim: int
    num_kv_heads: int | None
    head_dim: int | None
    norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rope_sections: tuple[int, ...] | None
    rope_dtype: str | None
    qk_norm: bool
    qkv_bias: bool


def check_plain(cls: str, llama: LlamaArguments, *names: str) -> None:
    """Refuses arguments that a trunk has its own way for.

    Raises:
        ValueError: one of them is given, and not as ``llama_layer`` has it where it is not.
    """
    defaults = signature(llama_layer).parameters
    for name, value in llama.items():
        if name in names and value != defaults[name].default:
            raise ValueError(f"{name} is {value}; accepted by {cls}: {defaults[name].default}")


def with_attention(layer: Layer, **changes: Any) -> Layer:  # fields of Attention
    """The layer with other fields of its ``Attention``.

    Raises:
        TypeError: a layer with another mixer.
    """
    if not isinstance(layer.mixer, Attention):
        raise TypeError(f"layer has a {type(layer.mixer).__name__}; accepted: Attention")
    return replace(layer, mixer=replace(layer.mixer, **changes))


def llama_layer(
    *,
    num_heads: int,
    mlp_dim: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    norm_eps: float = 1e-5,
    rope_theta: float = 10000.0,
    rope_scaling: dict[str, Any] | None = None,
    rope_sections: tuple[int, ...] | None = None,
    rope_dtype: str | None = None,
    qk_norm: bool = False,
    qkv_bias: bool = False,
) -> Layer:
    """Attention with rotary positions and a SwiGLU, each after an RMS norm.

    Args:
        num_heads: query heads.
        mlp_dim: inner width of the feed-forward part.
        num_kv_heads: key/value heads; ``num_heads`` if None. Must divide it.
        head_dim: width of a head; the trunk's width / ``num_heads`` if None. Even.
        norm_eps: epsilon of the norms.
        rope_theta: ``theta`` of ``Rotary``.
        rope_scaling: its ``scaling``.
        rope_sections: its ``sections``.
        rope_dtype: its ``dtype``.
        qk_norm: RMS norm on every head's q and k before the rotation (Qwen3, Emu3.5).
        qkv_bias: biases on q, k and v (Qwen2).

    Source: Llama (arXiv 2302.13971).

    Examples:
        >>> from dataclasses import replace
        >>> from mmblocks.trunks import MLP, llama_layer
        >>> layer = llama_layer(num_heads=4, mlp_dim=64)
        >>> layer.mixer.rotary.theta
        10000.0
        >>> replace(layer, feed_forward=MLP(hidden_dim=64)).feed_forward.activation
        'gelu_tanh'
    """
    norm = Norm(eps=norm_eps)
    rotary = Rotary(theta=rope_theta, scaling=rope_scaling, sections=rope_sections, dtype=rope_dtype)
    attention = Attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        qk_norm=norm if qk_norm else None,
        rotary=rotary,
    )
    return Layer(mixer=attention, feed_forward=GatedMLP(hidden_dim=mlp_dim), norm=norm)
