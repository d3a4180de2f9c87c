"""How published files of MAR name their tensors, and what their options say."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import stated

_SIZES = {"mar_base": (768, 12, 12), "mar_large": (1024, 16, 16), "mar_huge": (1280, 20, 16)}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments, or the name of a size.

    The constructor takes no epsilon but a class of norms. ``norm_eps`` stands for it; the published sizes have 1e-6.
    """
    patch = config.get("patch_size", 1)
    side = config.get("img_size", 256) // config.get("vae_stride", 16) // patch
    name = stated(config, "function", config.get("model"))
    sizes: dict[str, Any] = {"mlp_ratio": 4.0} if name is not None else {"mlp_ratio": config.get("mlp_ratio", 4.0)}
    if name is not None and name not in _SIZES:
        raise ValueError(f"the size is {name!r}; accepted: {', '.join(_SIZES)}")
    for half in ("encoder", "decoder"):
        dim, layers, heads = (
            _SIZES[name] if name is not None else (config[f"{half}_{entry}"] for entry in ("embed_dim", "depth", "num_heads"))
        )
        sizes |= {f"{half}_dim": dim, f"{half}_layers": layers, f"{half}_heads": heads}
    return {
        **sizes,
        "channels": config.get("vae_embed_dim", 16),
        "patch_size": patch,
        "grid": (side, side),
        "num_classes": config.get("class_num", 1000),
        "num_class_tokens": config.get("buffer_size", 64),
        "norm_eps": config.get("norm_eps", 1e-6),
        "dropout": config.get("proj_dropout", 0.1),
        "label_dropout": config.get("label_drop_prob", 0.1),
        "min_mask_ratio": config.get("mask_ratio_min", 0.7),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the official constructor. There is no file for them: scripts name them, and ``norm_eps`` as a class of norms."""
    rows, columns = arguments["grid"]
    if rows != columns:
        raise ValueError(f"grid is {(rows, columns)}; accepted in the layout 'mar': squares, as its code has")
    names = {"embed_dim": "dim", "depth": "layers", "num_heads": "heads"}
    return {
        "img_size": rows * arguments["patch_size"] * 16,
        "vae_stride": 16,
        "patch_size": arguments["patch_size"],
        **{f"{half}_{theirs}": arguments[f"{half}_{ours}"] for half in ("encoder", "decoder") for theirs, ours in names.items()},
        "mlp_ratio": arguments["mlp_ratio"],
        "norm_eps": arguments["norm_eps"],
        "vae_embed_dim": arguments["channels"],
        "mask_ratio_min": arguments["min_mask_ratio"],
        "label_drop_prob": arguments["label_dropout"],
        "class_num": arguments["num_classes"],
        "attn_dropout": arguments["dropout"],
        "proj_dropout": arguments["dropout"],
        "buffer_size": arguments["num_class_tokens"],
    }


def _layers(theirs: str, half: str) -> tuple[Rule | Split, ...]:
    """Of encoder or decoder, whose layers are timm's."""
    layer = f"trunk.{half}.layers.{{}}"
    names = {
        "norm1": "attention_norm",
        "attn.proj": "attention.output",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
    }
    qkv = tuple(f"{layer}.attention.{part}.*" for part in ("query", "key", "value"))
    return (Split(f"{theirs}.attn.qkv.*", qkv), *(Rule(f"{theirs}.{one}.*", f"{layer}.{ours}.*") for one, ours in names.items()))


MAR_LAYOUTS = (
    Layout(
        "mar",
        (
            Rule("fake_latent", "classes.no_class", "squeeze_first"),
            Rule("class_emb.weight", "classes.classes.weight"),
            Rule("z_proj.*", "embed.*"),
            Rule("z_proj_ln.*", "trunk.norm.*"),
            Rule("encoder_pos_embed_learned", "trunk.encoder_positions", "squeeze_first"),
            *_layers("encoder_blocks.{}", "encoder"),
            Rule("encoder_norm.*", "trunk.encoder.norm.*"),
            Rule("decoder_embed.*", "trunk.connect.*"),
            Rule("mask_token", "trunk.mask_token"),
            Rule("decoder_pos_embed_learned", "trunk.decoder_positions", "squeeze_first"),
            *_layers("decoder_blocks.{}", "decoder"),
            Rule("decoder_norm.*", "trunk.decoder.norm.*"),
            Rule("diffusion_pos_embed_learned", "positions.table", "squeeze_first"),
        ),
        ignored=("diffloss.*",),
        config=_config,
        published_config=_published_config,
        harmless=("diffloss_d", "diffloss_w", "num_sampling_steps", "diffusion_batch_mul", "grad_checkpointing", "attn_dropout"),
        unwrap="model_ema",
    ),
)
"""Of ``MAR``; the head is a part of its own."""

MAR_FORMER = Layout(
    "mar until version 0.2",
    (
        Rule("classes.weight", "classes.classes.weight"),
        Rule("no_class", "classes.no_class"),
        Rule("embed_norm.*", "trunk.norm.*"),
        Rule("decoder_embed.*", "trunk.connect.*"),
        Rule("mask_token", "trunk.mask_token"),
        Rule("head_positions", "positions.table"),
        *(Rule(f"{half}_positions", f"trunk.{half}_positions") for half in ("encoder", "decoder")),
        *(Rule(f"{half}_norm.*", f"trunk.{half}.norm.*") for half in ("encoder", "decoder")),
        *(rule for half in ("encoder", "decoder") for rule in _layers(f"{half}_layers.{{}}", half)),
    ),
)
"""Names that folders saved by earlier versions have."""
