"""How published files of VAR's transformer name their tensors, and what their options say."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments, alone or beside the tokenizer's; what is not said is as published."""
    own = config.get("var", config)
    codes = config.get("quant", config.get("vae_kwargs", {}))
    return {
        "num_codes": codes.get("vocab_size", 4096),
        "code_dim": codes.get("Cvae", codes.get("z_channels", 32)),
        "num_classes": own.get("num_classes", 1000),
        "dim": own["embed_dim"],
        "num_layers": own["depth"],
        "num_heads": own["num_heads"],
        "mlp_ratio": own.get("mlp_ratio", 4.0),
        "norm_eps": own.get("norm_eps", 1e-6),
        "shared_modulation": own.get("shared_aln", False),
        "label_dropout": own.get("cond_drop_rate", 0.1),
        "l2_norm": own.get("attn_l2_norm", False),
        "scales": tuple(own.get("patch_nums", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))),
    }


VAR_LAYOUTS = (
    Layout(
        "var",
        (
            Rule("pos_start", "start", "squeeze_first"),
            Rule("pos_1LC", "positions", "squeeze_first"),
            Rule("word_embed.*", "embed.*"),
            Rule("class_emb.weight", "classes.weight"),
            Rule("lvl_embed.weight", "levels.weight"),
            Rule("shared_ada_lin.{}.*", "shared_modulation.{}.*"),
            Rule("blocks.{}.ada_gss", "layers.{}.own_modulation", "squeeze_first"),
            Rule("blocks.{}.ada_lin.{}.*", "layers.{}.modulation.{}.*"),
            Rule("blocks.{}.attn.scale_mul_1H11", "layers.{}.attention.log_scale", "squeeze_first"),
            Rule("blocks.{}.attn.q_bias", "layers.{}.attention.query_bias"),
            Rule("blocks.{}.attn.v_bias", "layers.{}.attention.value_bias"),
            Rule("blocks.{}.attn.mat_qkv.weight", "layers.{}.attention.qkv.weight"),
            Rule("blocks.{}.attn.proj.*", "layers.{}.attention.output.*"),
            Rule("blocks.{}.ffn.fc1.*", "layers.{}.up.*"),
            Rule("blocks.{}.ffn.fc2.*", "layers.{}.down.*"),
            Rule("head_nm.ada_lin.{}.*", "modulation.{}.*"),
            Rule("head.*", "predict.*"),
        ),
        # Masks and numbers of scales follow from the scales, and the bias of keys is zero. The tokenizer is a part of its own.
        ignored=("attn_bias_for_masking", "lvl_1L", "blocks.{}.attn.zero_k_bias", "vae_quant.*"),
        config=_config,
    ),
)
"""Of ``VAR``; the tokenizer is a part of its own."""
