"""How published files of the EVA family name the tensors of an image tower, and what their configs mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule, Split

WRAPPERS = "model|module|state_dict|"
"""Under which of these keys, or none, a ``.pt`` file holds its tensors."""

_HEAD = ("norm.*", "fc_norm.*", "head.*", "lm_head.*", "mask_token")
"""What published files hold behind the last block, or for pretraining alone."""

ROPE_TABLES = ("rope.*", "blocks.{}.attn.rope.*")
"""Turning angles, which follow from the sizes; files hold them once for the tower and once more for each block."""

BESIDE_VISUAL = (
    *("text.*", "logit_scale"),
    *("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection"),
)
"""What an EVA-CLIP file holds beside ``visual.*``; older ones have no ``text.`` before the text tower's names."""

_HEAD_IN_VISUAL = ("visual.norm.*", "visual.fc_norm.*", "visual.head.*")

_TABLES_IN_VISUAL = tuple(f"visual.{name}" for name in ROPE_TABLES)


def eva_rules(theirs: str, ours: str, *, swiglu: bool = False) -> tuple[Rule | Split, ...]:
    """The rules of a tower whose published names begin with ``theirs``, and which a Block keeps under ``ours``.

    Both prefixes end with a dot or are empty. ``swiglu`` is for EVA-02's base and large towers, whose files hold query, key and
    value apart; all others hold them as one tensor.
    """
    block, mine = f"{theirs}blocks.{{}}", f"{ours}vit.blocks.{{}}"
    projections = tuple(f"{mine}.attn.{name}_proj.weight" for name in "qkv")
    apart = tuple(Rule(f"{block}.attn.{name}_proj.weight", f"{mine}.attn.{name}_proj.weight") for name in "qkv")
    attention: tuple[Rule | Split, ...] = (
        *(apart if swiglu else (Split(f"{block}.attn.qkv.weight", projections),)),
        Rule(f"{block}.attn.q_bias", f"{mine}.attn.q_proj.bias"),
        Rule(f"{block}.attn.v_bias", f"{mine}.attn.v_proj.bias"),
        Rule(f"{block}.attn.inner_attn_ln.*", f"{mine}.attn.norm.*"),
        Rule(f"{block}.gamma_1", f"{mine}.gamma_1"),
        Rule(f"{block}.gamma_2", f"{mine}.gamma_2"),
    )
    gated = (("w1", "fc1_g"), ("w2", "fc1_x"), ("ffn_ln", "norm"), ("w3", "fc2"))
    feed_forward = gated if swiglu else (("fc1", "fc1"), ("fc2", "fc2"))
    return (
        *attention,
        *(Rule(f"{block}.mlp.{key}.*", f"{mine}.mlp.{name}.*") for key, name in feed_forward),
        *(Rule(f"{block}.{name}.*", f"{mine}.{name}.*") for name in ("attn.proj", "norm1", "norm2")),
        *(Rule(f"{theirs}{name}", f"{ours}vit.{name}") for name in ("cls_token", "pos_embed")),
        Rule(f"{theirs}patch_embed.proj.*", f"{ours}vit.patch_embed.proj.*"),
    )


def eva_tower_arguments(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EvaTower`` from the ``vision_cfg`` of an EVA-CLIP model, with the authors' defaults.

    Raises:
        KeyError: the config of another kind of tower.
        ValueError: a form of the tower that no published model has.
    """
    gated, normed = bool(vision.get("naiveswiglu")), bool(vision.get("subln"))
    if not vision.get("eva_model_name"):
        raise ValueError("the config is of a tower of another kind; accepted: an EVA tower, which has an eva_model_name")
    if gated != normed:
        raise ValueError(f"naiveswiglu is {gated} and subln {normed}; accepted: both or neither")
    height, width = _pair(vision.get("image_size", 224))
    dim = vision.get("width", 768)
    grid = vision.get("pt_hw_seq_len", 16) if vision.get("rope") and vision.get("intp_freq") else None
    return {
        "image_size": (height, width),
        "patch_size": vision.get("patch_size", 16),
        "dim": dim,
        "num_layers": vision.get("layers", 12),
        "num_heads": dim // vision.get("head_width", 64),
        "mlp_dim": int(dim * vision.get("mlp_ratio", 4.0)),
        "norm": "rms" if vision.get("use_rms_norm") else "layer",
        "post_norm": bool(vision.get("postnorm")),
        "qkv_bias": vision.get("qkv_bias", True),
        "swiglu": gated,
        "attention_norm": normed,
        "rope": bool(vision.get("rope")),
        "rope_grid": None if grid is None else (grid, grid),
        "layer_scale": vision.get("ls_init_value") or None,
        "drop_path": vision.get("drop_path_rate") or 0.0,
    }


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def tower_layouts() -> tuple[Layout, ...]:
    """Of a tower without norm and head, alone or as a part of an EVA-CLIP file."""
    return (
        Layout("eva", eva_rules("", ""), ignored=_HEAD, unwrap=WRAPPERS),
        Layout("eva02", eva_rules("", "", swiglu=True), ignored=(*_HEAD, *ROPE_TABLES), unwrap=WRAPPERS),
        Layout(
            "eva-clip",
            eva_rules("visual.", ""),
            ignored=(*BESIDE_VISUAL, *_HEAD_IN_VISUAL),
            config=_tower_config,
            unwrap=WRAPPERS,
        ),
        Layout(
            "eva02-clip",
            eva_rules("visual.", "", swiglu=True),
            ignored=(*BESIDE_VISUAL, *_HEAD_IN_VISUAL, *_TABLES_IN_VISUAL),
            config=_tower_config,
            unwrap=WRAPPERS,
        ),
    )


def _tower_config(published: Mapping[str, Any]) -> dict[str, Any]:
    return eva_tower_arguments(published["vision_cfg"]) if published else {}
