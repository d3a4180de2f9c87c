"""Widths of the parts on both sides of a connector. Configs of transformers leave out what is as in their classes."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import shown, stated, title

_WIDTHS = {
    "clip_vision_model": 768,
    "siglip_vision_model": 768,
    "internvl_vision": 1024,
    "intern_vit_6b": 3200,
    "llama": 4096,
    "mistral": 4096,
    "qwen2": 4096,
    "qwen3": 4096,
    "internlm2": 4096,
    "gemma": 3072,
    "phi3": 3072,
    "opt": 768,
    "t5": 512,
}
"""``hidden_size`` of a class where a config does not say it."""


def of_width(width: int, **entries: object) -> dict[str, Any]:
    """The way back: a config of a part of which no more is known, with one head, so that it is a valid one of any width."""
    return {**entries, "hidden_size": width, "num_attention_heads": 1}


def width_of(config: Mapping[str, Any], part: str, kind: str, width: int | None = None) -> int:
    """Width of a part of a model.

    Args:
        config: the whole model's.
        part: the entry with the part's own config.
        kind: the part's ``model_type`` where its config does not say it.
        width: the part's width where there is no config of it; None for that of ``kind``.

    Raises:
        ValueError: no width, and a class of which none is known.
    """
    if not config.get(part):
        return width or _WIDTHS[kind]
    inner = config[part]
    for name in ("hidden_size", "d_model"):
        if inner.get(name) is not None:
            return int(inner[name])
    kind = stated(inner, "model_type", kind)
    if kind not in _WIDTHS:
        names = ", ".join(_WIDTHS)
        raise ValueError(f"{title(config, part)} has no hidden_size and is of the kind {shown(kind)}; accepted without: {names}")
    return _WIDTHS[kind]
