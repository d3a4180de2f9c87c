"""How published files of ACDiT name their tensors, and what their options say."""

import math
from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import only, stated

_SIZES = {
    "ACDiT-B": (12, 768, 12),
    "ACDiT-L": (24, 1024, 16),
    "ACDiT-XL": (28, 1152, 18),
    "ACDiT-H": (32, 1280, 20),
}
_FUNCTIONS = {"ACDiT_132M": "ACDiT-B", "ACDiT_460M": "ACDiT-L", "ACDiT_677M": "ACDiT-XL", "ACDiT_954M": "ACDiT-H"}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments, those of one of its functions, or the ``args`` that a published file carries."""
    is_args = "model" in config
    name = config["model"] if is_args else config.get("function")
    size = _FUNCTIONS.get(str(name), name)
    if name is not None and size not in _SIZES:
        raise ValueError(f"the size is {name!r}; accepted: {', '.join((*_SIZES, *_FUNCTIONS))}")
    layers, dim, heads = _SIZES[size] if size else (config["depth"], config["hidden_size"], config["num_heads"])
    frames, side, square = _grid_of_args(config) if is_args else _grid(config)
    block_size = config.get("block_size", 16 if is_args else 256)
    if (ar_len := config.get("ar_len")) is not None and ar_len * block_size != frames * side * side:
        raise ValueError(f"ar_len is {ar_len}; accepted: {frames * side * side / block_size:g}, as many blocks as there are")
    shares = stated(config, "nd_split", "1_1" if frames == 1 else "2_3_3")
    return {
        "latent_dim": _width(config, is_args),
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "num_classes": config.get("num_classes", 101),
        "label_dropout": config.get("class_dropout_prob", 0.1),
        "grid": (frames, side, side),
        "block_size": block_size,
        "square_blocks": square,
        "axis_shares": tuple(int(share) for share in (shares.split("_") if isinstance(shares, str) else shares)),
        "qk_norm": not config.get("no_qk_norm", False),
    }


def _grid(config: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Frames, tokens a side, and whether blocks are squares: of the constructor's arguments, which fit one frame where they are."""
    frames, tokens = config.get("temporal_len", 1), config.get("spatial_len", 1024)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"spatial_len is {tokens}; accepted: squares")
    if frames > 1:
        only(config, "square_block", False)
    return frames, side, frames == 1 and config.get("square_block", True)


def _grid_of_args(config: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Likewise, of the options of a training run."""
    frames = config.get("num_frames", 16)
    side = config.get("image_size", 256) // config.get("vae_patch_pixels", 8) // config.get("patch_size", 1)
    square = config.get("square_block", False) or config.get("dataset", "ImageNet") == "ImageNet"
    return frames, side, frames == 1 and square


_PRODUCT = "vae_latent_size*patch_size**2"
"""What the official scripts hand in as ``latent_size``: options of a training run."""


def _width(config: Mapping[str, Any], is_args: bool) -> int:
    """Width of a token's latents."""
    given = _PRODUCT if is_args else stated(config, "latent_size", 16)
    if isinstance(given, int):
        return given
    if not isinstance(given, str) or not given.startswith(_PRODUCT):
        raise ValueError(f"latent_size is {given!r}; accepted: a number, or {_PRODUCT!r}")
    width: int = config.get("vae_latent_size", 4) * config.get("patch_size", 1) ** 2
    return width


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the official constructor; published files carry options of a training run instead."""
    frames, rows, columns = arguments["grid"]
    square = arguments["square_blocks"]
    if rows != columns or (square and frames > 1):
        found = f"grid is {(frames, rows, columns)}, square_blocks {square}"
        raise ValueError(f"{found}; accepted in the layout 'acdit': square frames, and square blocks in one frame alone")
    return {
        "latent_size": arguments["latent_dim"],
        "block_size": arguments["block_size"],
        "hidden_size": arguments["dim"],
        "depth": arguments["num_layers"],
        "num_heads": arguments["num_heads"],
        "mlp_ratio": arguments["mlp_ratio"],
        "class_dropout_prob": arguments["label_dropout"],
        "num_classes": arguments["num_classes"],
        "no_qk_norm": not arguments["qk_norm"],
        "ar_len": frames * rows * columns // arguments["block_size"],
        "temporal_len": frames,
        "spatial_len": rows * columns,
        "nd_split": "_".join(map(str, arguments["axis_shares"])),
        "square_block": square,
    }


_HARMLESS = (
    # of the constructor, which keeps them and reads them nowhere; the files' own code draws the rotation in any case
    *("in_channels", "learn_sigma", "spatial_2d", "use_rope", "patch_size", "num_frames"),
    # of a training run
    *("data_path", "results_dir", "project_name", "vae_path", "dataset", "num_scales", "images_per_label", "cfg"),
    *("lr", "lr_scheduler", "lr_warmup", "weight_decay", "beta1", "beta2", "max_grad_norm", "mixed_precision"),
    *("epochs", "global_batch_size", "batch_size_per_rank", "global_seed", "num_workers", "log_every", "ckpt_every", "eval_every"),
)


_LAYER = "trunk.layers.{}"
_QKV = tuple(f"{_LAYER}.attention.{part}.*" for part in ("query", "key", "value"))


ACDIT_LAYOUTS = (
    Layout(
        "acdit",
        (
            Rule("t_embedder.mlp.{}.*", "head.time.mlp.{}.*"),
            Rule("y_embedder.embedding_table.weight", "head.classes.weight"),
            Rule("x_embedder.weight", "embed.weight"),
            Rule("blocks.{}.norm1.weight", f"{_LAYER}.attention_norm.weight"),
            Split("blocks.{}.attn.qkv.*", _QKV),
            Rule("blocks.{}.attn.q_norm.weight", f"{_LAYER}.attention.query_norm.weight"),
            Rule("blocks.{}.attn.k_norm.weight", f"{_LAYER}.attention.key_norm.weight"),
            Rule("blocks.{}.attn.proj.*", f"{_LAYER}.attention.output.*"),
            Rule("blocks.{}.norm2.weight", f"{_LAYER}.mlp_norm.weight"),
            Rule("blocks.{}.mlp.fc1.*", f"{_LAYER}.mlp.up.*"),
            Rule("blocks.{}.mlp.fc2.*", f"{_LAYER}.mlp.down.*"),
            Rule("blocks.{}.adaLN_modulation.{}.*", f"{_LAYER}.modulation.map.{{}}.*"),
            Rule("final_layer.norm_final.weight", "trunk.norm.weight"),
            Rule("final_layer.linear.*", "head.output.linear.*"),
            Rule("final_layer.adaLN_modulation.{}.*", "head.output.modulation.{}.*"),
        ),
        config=_config,
        published_config=_published_config,
        harmless=_HARMLESS,
        unwrap="ema",
    ),
)
"""Of ``ACDiT``."""

ACDIT_FORMER = Layout(
    "acdit until version 0.2",
    (
        *(Rule(f"{name}.*", f"head.{name}.*") for name in ("time", "classes", "output")),
        *(Rule(f"layers.{{}}.{name}.*", f"{_LAYER}.{name}.*") for name in ("attention_norm", "mlp_norm")),
        *(Rule(f"layers.{{}}.{name}.*", f"{_LAYER}.attention.{name}.*") for name in ("query_norm", "key_norm", "output")),
        *(Rule(f"layers.{{}}.{name}.*", f"{_LAYER}.mlp.{name}.*") for name in ("up", "down")),
        Split("layers.{}.qkv.*", _QKV),
        Rule("layers.{}.modulation.{}.*", f"{_LAYER}.modulation.map.{{}}.*"),
        Rule("norm.weight", "trunk.norm.weight"),
        Rule("modulation.{}.*", "head.output.modulation.{}.*"),
        Rule("predict.*", "head.output.linear.*"),
    ),
)
"""Names that folders saved by earlier versions have."""
