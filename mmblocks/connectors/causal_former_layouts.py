"""How published files of Emu and its Causal Former name their tensors, and what their configs mean."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only, stated
from mmblocks.checkpoints.layouts.rules import Arguments

_T5 = {
    "d_model": ("hidden_dim", 768),
    "num_decoder_layers": ("num_layers", 12),
    "num_heads": ("num_heads", 12),
    "d_kv": ("head_dim", 64),
    "d_ff": ("mlp_dim", 3072),
    "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "layer_norm_epsilon": ("norm_eps", 1e-6),
}
"""Entries of T5's config -> our arguments, and T5-base's values: Emu takes that from the Hub, and its own config is silent."""

_T5_HARMLESS = tuple(
    f"t5_config.{name}"
    for name in (
        *("vocab_size", "num_layers", "is_encoder_decoder", "n_positions", "output_past", "encoder_width", "scale_decoder_outputs"),
        *("tie_word_embeddings", "is_decoder"),
    )
)
"""Of T5's encoder, its vocabulary, and what Emu writes into the config when it builds the stack."""


def _rules(prefix: str) -> tuple[Rule, ...]:
    block = f"{prefix}cformer.block.{{}}.layer"
    kinds = (("0.SelfAttention", "attention"), ("1.EncDecAttention", "cross_attention"))
    names = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
    norms = enumerate(("attention_norm", "cross_attention_norm", "mlp_norm"))
    return (
        Rule(f"{prefix}causal_tokens", "queries"),
        # Only the first block has the table, which all share.
        Rule(f"{prefix}cformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position_table"),
        *(Rule(f"{block}.{kind}.{key}.weight", f"layers.{{}}.{mine}.{name}.weight") for kind, mine in kinds for key, name in names),
        Rule(f"{block}.2.DenseReluDense.wi.weight", "layers.{}.up.weight"),
        Rule(f"{block}.2.DenseReluDense.wo.weight", "layers.{}.down.weight"),
        *(Rule(f"{block}.{index}.layer_norm.weight", f"layers.{{}}.{norm}.weight") for index, norm in norms),
        Rule(f"{prefix}cformer.final_layer_norm.weight", "norm.weight"),
        Rule(f"{prefix}projection.*", "projection.*"),
    )


def _stack(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the stack, from T5's config."""
    t5 = stated(config, "t5_config", {})
    check_model(t5, "t5")
    only(t5, "feed_forward_proj", "relu")
    only(t5, "dense_act_fn", "relu")
    only(t5, "is_gated_act", False)
    found = {ours: t5.get(theirs, usual) for theirs, (ours, usual) in _T5.items()}
    if t5.get("num_decoder_layers") is None and t5.get("num_layers") is not None:
        found["num_layers"] = t5["num_layers"]
    return found


def _alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class, and T5's config, which it takes from the Hub."""
    return {
        "in_dim": config.get("vision_width", 768),
        "dim": config.get("output_dim", 512),
        "num_queries": config.get("n_causal", 32),
        **_stack(config),
    }


def _alone_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, input_norm=False)
    return {
        "vision_width": arguments["in_dim"],
        "output_dim": arguments["dim"],
        "n_causal": arguments["num_queries"],
        "t5_config": _stack_config(arguments),
    }


def _emu(config: Mapping[str, Any]) -> dict[str, Any]:
    """Emu's config; what it does not say is as published, since Emu's files of weights have no config beside them."""
    check_model(config, "emu")
    return {
        "in_dim": stated(config, "vision_cfg", {}).get("width", 1408),
        "dim": stated(config, "llama", {}).get("hidden_size", 5120),
        # Emu's multimodal_cfg has a number too, which its code does not look at.
        "num_queries": stated(config, "vladapter_cfg", {}).get("n_causal", 32),
        "input_norm": True,
        **_stack(config),
    }


def _emu_config(arguments: Arguments) -> dict[str, Any]:
    """Emu's own config has neither the widths of T5's stack nor that of the trunk, which its code takes from other files."""
    check_arguments(arguments, input_norm=True)
    return {
        "vision_cfg": {"width": arguments["in_dim"]},
        "vladapter_cfg": {"name": "cformer", "n_causal": arguments["num_queries"]},
        "multimodal_cfg": {"n_causal": arguments["num_queries"]},
        "t5_config": _stack_config(arguments),
        "llama": {"hidden_size": arguments["dim"]},
    }


def _stack_config(arguments: Arguments) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "feed_forward_proj": "relu",
        "num_layers": arguments["num_layers"],
        **{theirs: arguments[ours] for theirs, (ours, _) in _T5.items()},
    }


_EMU_HARMLESS = (
    *_T5_HARMLESS,
    *(
        "embed_dim",
        "quick_gelu",
        "vision_cfg.*",
        "multimodal_cfg.*",
        "vladapter_cfg.name",
        "llama.*",
        "vocab",
        "token_ids.*",
        "lora.*",
    ),
)
"""Of Emu's image tower, which has always the exact GELU, and of its language model."""


CAUSAL_FORMER_LAYOUTS = (
    Layout(
        "causal_former",
        _rules(""),
        ignored=("cformer.embed_tokens.weight",),
        config=_alone,
        published_config=_alone_config,
        harmless=_T5_HARMLESS,
    ),
    Layout(
        "emu",
        (Rule("ln_visual.*", "input_norm.*"), *_rules("cformer.")),
        ignored=("visual.*", "decoder.*", "cformer.cformer.embed_tokens.weight"),
        config=_emu,
        published_config=_emu_config,
        harmless=_EMU_HARMLESS,
    ),
)
"""Of ``CausalFormer``."""
