"""How published files of MAR name their tensors, and what their options say."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule

_SIZES = {"mar_base": (768, 12, 12), "mar_large": (1024, 16, 16), "mar_huge": (1280, 20, 16)}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments, or the name of a size."""
    patch = config.get("patch_size", 1)
    side = config.get("img_size", 256) // config.get("vae_stride", 16) // patch
    sizes: dict[str, Any] = {}
    for half in ("encoder", "decoder"):
        if "function" in config:
            dim, layers, heads = _SIZES[config["function"]]
        else:
            dim, layers, heads = (config[f"{half}_{name}"] for name in ("embed_dim", "depth", "num_heads"))
        sizes |= {f"{half}_dim": dim, f"{half}_layers": layers, f"{half}_heads": heads}
    return {
        **sizes,
        "channels": config.get("vae_embed_dim", 16),
        "patch_size": patch,
        "grid": (side, side),
        "num_classes": config.get("class_num", 1000),
        "num_class_tokens": config.get("buffer_size", 64),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "norm_eps": config.get("norm_eps", 1e-6),
        "label_dropout": config.get("label_drop_prob", 0.1),
        "min_mask_ratio": config.get("mask_ratio_min", 0.7),
    }


MAR_LAYOUTS = (
    Layout(
        "mar",
        (
            Rule("fake_latent", "no_class", "squeeze_first"),
            Rule("class_emb.weight", "classes.weight"),
            Rule("z_proj.*", "embed.*"),
            Rule("z_proj_ln.*", "embed_norm.*"),
            Rule("encoder_pos_embed_learned", "encoder_positions", "squeeze_first"),
            Rule("encoder_blocks.{}.*", "encoder_layers.{}.*"),
            Rule("encoder_norm.*", "encoder_norm.*"),
            Rule("decoder_embed.*", "decoder_embed.*"),
            Rule("mask_token", "mask_token"),
            Rule("decoder_pos_embed_learned", "decoder_positions", "squeeze_first"),
            Rule("decoder_blocks.{}.*", "decoder_layers.{}.*"),
            Rule("decoder_norm.*", "decoder_norm.*"),
            Rule("diffusion_pos_embed_learned", "head_positions", "squeeze_first"),
        ),
        ignored=("diffloss.*",),
        config=_config,
        unwrap="model_ema",
    ),
)
"""Of ``MAR``; the head is a part of its own."""
