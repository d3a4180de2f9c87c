"""How published files of ACDiT name their tensors, and what their options say."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule

_SIZES = {
    "ACDiT-B": (12, 768, 12),
    "ACDiT-L": (24, 1024, 16),
    "ACDiT-XL": (28, 1152, 18),
    "ACDiT-H": (32, 1280, 20),
}
_FUNCTIONS = {"ACDiT_132M": "ACDiT-B", "ACDiT_460M": "ACDiT-L", "ACDiT_677M": "ACDiT-XL", "ACDiT_954M": "ACDiT-H"}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments; or the name of a size, and the ``args`` that a published file carries."""
    name = config.get("model") or _FUNCTIONS.get(config.get("function", ""))
    layers, dim, heads = _SIZES[name] if name else (config["depth"], config["hidden_size"], config["num_heads"])
    width = config.get("latent_size")
    if not isinstance(width, int):
        width = config.get("vae_latent_size", 4) * config.get("patch_size", 1) ** 2
    frames = config.get("temporal_len", 1)
    side = int(config.get("spatial_len", 1024) ** 0.5 + 0.5)
    shares = config.get("nd_split") or ("1_1" if frames == 1 else "2_3_3")
    return {
        "latent_dim": width,
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "num_classes": config.get("num_classes", 1000),
        "label_dropout": config.get("class_dropout_prob", 0.1),
        "grid": (frames, side, side),
        "block_size": config["block_size"],
        "square_blocks": frames == 1 and config.get("square_block", True),
        "axis_shares": tuple(int(share) for share in (shares.split("_") if isinstance(shares, str) else shares)),
        "qk_norm": not config.get("no_qk_norm", False),
    }


ACDIT_LAYOUTS = (
    Layout(
        "acdit",
        (
            Rule("t_embedder.mlp.{}.*", "time.mlp.{}.*"),
            Rule("y_embedder.embedding_table.weight", "classes.weight"),
            Rule("x_embedder.weight", "embed.weight"),
            Rule("blocks.{}.norm1.weight", "layers.{}.attention_norm.weight"),
            Rule("blocks.{}.attn.qkv.*", "layers.{}.qkv.*"),
            Rule("blocks.{}.attn.q_norm.weight", "layers.{}.query_norm.weight"),
            Rule("blocks.{}.attn.k_norm.weight", "layers.{}.key_norm.weight"),
            Rule("blocks.{}.attn.proj.*", "layers.{}.output.*"),
            Rule("blocks.{}.norm2.weight", "layers.{}.mlp_norm.weight"),
            Rule("blocks.{}.mlp.fc1.*", "layers.{}.up.*"),
            Rule("blocks.{}.mlp.fc2.*", "layers.{}.down.*"),
            Rule("blocks.{}.adaLN_modulation.{}.*", "layers.{}.modulation.{}.*"),
            Rule("final_layer.norm_final.weight", "norm.weight"),
            Rule("final_layer.linear.*", "predict.*"),
            Rule("final_layer.adaLN_modulation.{}.*", "modulation.{}.*"),
        ),
        config=_config,
        unwrap="ema",
    ),
)
"""Of ``ACDiT``."""
