"""The arguments of the ten published EVA-CLIP models, whose ``.pt`` files come without a config."""

from copy import deepcopy
from typing import Any

_EVA02: dict[str, Any] = {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (16, 16)}
_RMS: dict[str, Any] = {"norm": "rms", "qkv_bias": False}


def _square(side: int, patch_size: int, dim: int, num_layers: int, num_heads: int, mlp_dim: int, **kind: object) -> dict[str, Any]:
    sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
    return {"image_size": (side, side), "patch_size": patch_size, **sizes, **kind}


_GIANT = _square(224, 14, 1408, 40, 16, 6144)
_BASE = _square(224, 16, 768, 12, 12, 2048, **_EVA02)
_LARGE = _square(224, 14, 1024, 24, 16, 2730, **_EVA02)
_ENORMOUS = _square(224, 14, 1792, 64, 16, 15360, post_norm=True)
_8B = _square(224, 14, 4096, 32, 32, 20480, **_RMS)
_18B = _square(224, 14, 5120, 48, 40, 25600, post_norm=True, **_RMS)

_MODELS: dict[str, tuple[dict[str, Any], int, tuple[int, int, int]]] = {
    "EVA01_CLIP_g_14_psz14_s11B": (_GIANT, 1024, (768, 12, 12)),
    "EVA01_CLIP_g_14_plus_psz14_s11B": (_GIANT, 1024, (1024, 24, 16)),
    "EVA02_CLIP_B_psz16_s8B": (_BASE, 512, (512, 12, 8)),
    "EVA02_CLIP_L_psz14_s4B": (_LARGE, 768, (768, 12, 12)),
    "EVA02_CLIP_L_336_psz14_s6B": ({**_LARGE, "image_size": (336, 336)}, 768, (768, 12, 12)),
    "EVA02_CLIP_E_psz14_s4B": (_ENORMOUS, 1024, (1024, 24, 16)),
    "EVA02_CLIP_E_psz14_plus_s9B": (_ENORMOUS, 1024, (1280, 32, 20)),
    "EVA_CLIP_8B_psz14_s9B": (_8B, 1280, (1280, 32, 20)),
    "EVA_CLIP_8B_psz14_plus_s0.6B": ({**_8B, "image_size": (448, 448)}, 1280, (1280, 32, 20)),
    "EVA_CLIP_18B_psz14_s6B": (_18B, 1536, (1280, 32, 20)),
}
"""Name of the file -> the image tower, the width of the embeddings, the text tower's width, layers and heads."""

EVA_CLIP_MODELS = tuple(_MODELS)
"""Names of the published models, which are those of their files."""


def eva_clip_arguments(name: str) -> dict[str, Any]:
    """The arguments of an ``EVACLIP``: those of its ``EVACLIPVision`` are under "vision", of its ``EVACLIPText`` under "text".

    Raises:
        ValueError: a model that is not published.
    """
    if name not in _MODELS:
        raise ValueError(f"name is {name!r}; accepted: {', '.join(_MODELS)}")
    tower, embed_dim, (dim, num_layers, num_heads) = _MODELS[name]
    vision = {"tower": deepcopy(tower), "embed_dim": embed_dim, "head_bias": tower.get("qkv_bias", True)}
    return {"vision": vision, "text": {"embed_dim": embed_dim, "dim": dim, "num_layers": num_layers, "num_heads": num_heads}}
