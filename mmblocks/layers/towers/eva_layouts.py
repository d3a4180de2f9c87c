"""How published files of the EVA family name the tensors of an image tower, and what their configs mean."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import check_arguments
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.configurable import Configurable, parameters

WRAPPERS = "model|module|state_dict|"
"""Under which of these keys, or none, a ``.pt`` file holds its tensors."""

_HEAD = ("norm.*", "fc_norm.*", "head.*", "lm_head.*", "mask_token")
"""What published files hold after the last block, or for pretraining alone."""

BESIDE_VISUAL = (
    *("text.*", "logit_scale"),
    *("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection"),
)
"""What an EVA-CLIP file holds beside ``visual.*``; older ones have no ``text.`` before the text tower's names."""

TOWER_HARMLESS = tuple(
    f"vision_cfg.{name}"
    for name in (
        *("eva_model_name", "fusedLN", "xattn", "freeze", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"),
        *("timm_proj_bias", "pt_hw_seq_len", "intp_freq"),
    )
)
"""Of a tower's config: any name, which kernels compute it, other kinds of towers, and places where there is no ``rope``."""

BESIDE_TOWERS = ("custom_text", "model_name", "checkpoint", "readme_precision", "visual_params", "text_params")
"""Of an EVA-CLIP config: how the towers' tensors are called, and which file was published with which number of parameters."""


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
        ValueError: the config of another kind of tower, or a form that no published model has.
    """
    gated, normed = bool(vision.get("naiveswiglu")), bool(vision.get("subln"))
    if not vision.get("eva_model_name"):
        raise ValueError("the config is of a tower of another kind; accepted: an EVA tower, which has an eva_model_name")
    if gated != normed:
        raise ValueError(f"naiveswiglu is {gated} and subln {normed}; accepted: both or neither")
    height, width = _pair(vision.get("image_size", 224))
    patch_size, dim = vision.get("patch_size", 16), vision.get("width", 768)
    return {
        "image_size": (height, width),
        "patch_size": patch_size,
        "dim": dim,
        "num_layers": vision.get("layers", 12),
        "num_heads": dim // vision.get("head_width", 64),
        "mlp_dim": int(dim * vision.get("mlp_ratio", 4.0)),
        # Its fused kernel knows layer norms alone, and is taken first.
        "norm": "rms" if vision.get("use_rms_norm") and not vision.get("fusedLN") else "layer",
        "post_norm": bool(vision.get("postnorm")),
        "qkv_bias": vision.get("qkv_bias", True),
        "swiglu": gated,
        "attention_norm": normed,
        "rope": bool(vision.get("rope")),
        "rope_grid": _rope_grid(vision, (height // patch_size, width // patch_size)) if vision.get("rope") else None,
        "layer_scale": vision.get("ls_init_value") or None,
        "drop_path": vision.get("drop_path_rate") or 0.0,
    }


def _rope_grid(vision: Mapping[str, Any], grid: tuple[int, int]) -> tuple[int, int] | None:
    """Over what the places are spread; None for one each patch, of which there must be as many as places then."""
    side = vision.get("pt_hw_seq_len", 16)
    if vision.get("intp_freq"):
        return (side, side)
    if grid != (side, side):
        raise ValueError(
            f"pt_hw_seq_len is {side} without intp_freq, and the grid {grid[0]}x{grid[1]}; accepted: a grid of {side}x{side}"
        )
    return None


def eva_tower_config(tower: Arguments) -> dict[str, Any]:
    """The way back: the ``vision_cfg`` of a tower. That it takes images of any size cannot be said there.

    Raises:
        ValueError: a tower that the authors' code cannot build.
    """
    check_arguments(tower, attention_norm=tower["swiglu"], norm_eps=1e-6, activation="gelu")
    dim, mlp_dim, (height, width) = tower["dim"], tower["mlp_dim"], tower["image_size"]
    config = {
        "eva_model_name": "eva-clip",
        "image_size": height if height == width else [height, width],
        "patch_size": tower["patch_size"],
        "width": dim,
        "layers": tower["num_layers"],
        "head_width": dim // tower["num_heads"],
        "mlp_ratio": (mlp_dim + 0.5) / dim if mlp_dim % dim else mlp_dim // dim,
        "postnorm": tower["post_norm"],
        "qkv_bias": tower["qkv_bias"],
        "naiveswiglu": tower["swiglu"],
        "subln": tower["attention_norm"],
        "ls_init_value": tower["layer_scale"],
        "drop_path_rate": tower["drop_path"],
    }
    if tower["norm"] == "rms":
        config["use_rms_norm"] = True
    return config | (_rope_config(tower) if tower["rope"] else {})


def _rope_config(tower: Arguments) -> dict[str, Any]:
    height = tower["image_size"][0]
    check_arguments(tower, image_size=(height, height))
    side = height // tower["patch_size"] if tower["rope_grid"] is None else tower["rope_grid"][0]
    if tower["rope_grid"] is not None:
        check_arguments(tower, rope_grid=(side, side))
    return {"rope": True, "pt_hw_seq_len": side, "intp_freq": tower["rope_grid"] is not None}


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def complete_tower(tower: Configurable | Arguments) -> dict[str, Any]:
    """All arguments of an ``EvaTower``, from the Block or from some of its arguments."""
    from mmblocks.layers.towers.eva import EvaTower  # here, since it imports this module

    if isinstance(tower, EvaTower):
        return tower.config
    defaults = {name: parameter.default for name, parameter in parameters(EvaTower).items()}
    return {**defaults, **cast("Arguments", tower)}


def rope_tables(theirs: str, *path: str) -> tuple[Derived, ...]:
    """Cosines and sines of the turning angles, which files hold once for the tower and once more for each block.

    Args:
        theirs: how names begin.
        path: where a Block's arguments have those of its tower.
    """
    return tuple(
        Derived(f"{theirs}{place}rope.freqs_{kind}", partial(_table_difference, kind=kind, path=path))
        for place in ("", "blocks.{}.attn.")
        for kind in ("cos", "sin")
    )


def _table_difference(table: Tensor, arguments: Arguments, *, kind: str, path: tuple[str, ...]) -> float:
    tower: Configurable | Arguments = arguments
    for name in path:
        tower = tower[name] if isinstance(tower, Mapping) else tower.config[name]
    angles = _angles(complete_tower(tower))
    if table.shape != angles.shape:
        raise ValueError(f"its shape is {tuple(table.shape)}; accepted: {tuple(angles.shape)}")
    wanted = angles.cos() if kind == "cos" else angles.sin()
    return float((table.to(wanted) - wanted).abs().max())


def _angles(tower: Mapping[str, Any]) -> Tensor:
    """By which each patch turns each channel of a head: one half by its row, the other by its column, channels in pairs."""
    if not tower["rope"]:
        raise ValueError("rope is False; accepted: a file without turning angles")
    half = tower["dim"] // tower["num_heads"] // 2
    grid = tuple(side // tower["patch_size"] for side in tower["image_size"])
    spread = tower["rope_grid"] or grid
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, device="cpu") / half)
    rows, columns = (
        (torch.arange(count, device="cpu") / count * over)[:, None] * frequencies for count, over in zip(grid, spread, strict=True)
    )
    rows, columns = (angles.repeat_interleave(2, dim=-1) for angles in (rows, columns))
    by_row = rows[:, None].expand(-1, len(columns), -1)
    by_column = columns[None].expand(len(rows), -1, -1)
    return torch.cat([by_row, by_column], dim=-1).flatten(0, 1)


def tower_layouts() -> tuple[Layout, ...]:
    """Of a tower without norm and head, alone or as a part of an EVA-CLIP file. A file of a tower alone has no config."""
    return tuple(
        Layout(
            f"{kind}{part}",
            eva_rules(prefix, "", swiglu=kind == "eva02"),
            ignored=(*beside, *(f"{prefix}{name}" for name in _HEAD)),
            config=_tower_config,
            published_config=_published_tower,
            unwrap=WRAPPERS,
            derived=rope_tables(prefix),
            harmless=(*TOWER_HARMLESS, *BESIDE_TOWERS, *_TOWER_ALONE),
        )
        for part, prefix, beside in (("", "", ()), ("-clip", "visual.", BESIDE_VISUAL))
        for kind in ("eva", "eva02")
    )


_TOWER_ALONE = ("embed_dim", "text_cfg.*", "quick_gelu", "vision_cfg.patch_dropout", "vision_cfg.global_average_pool")
"""Of the text tower, and of what lies after the image tower's last block, which has always the exact GELU."""


def _tower_config(published: Mapping[str, Any]) -> dict[str, Any]:
    return eva_tower_arguments(published["vision_cfg"]) if published else {}


def _published_tower(arguments: Arguments) -> dict[str, Any]:
    """EVA-CLIP's package has its configs inside, by the names of the models."""
    return {"vision_cfg": eva_tower_config(arguments)}
