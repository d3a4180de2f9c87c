"""How LaVIT names the tensors of its dynamic tokenizer and of the decoder, which lies in another file."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Rule, Split
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.layers.towers.eva_layouts import eva_rules

_QKV = ("query", "key", "value")


def _layer_rules(theirs: str, ours: str, self_attention: str, cross_attention: str) -> tuple[Rule | Split, ...]:
    fused = tuple(
        Split(f"{theirs}.{self_attention}.qkv.{kind}", tuple(f"{ours}.self_attention.{name}.{kind}" for name in _QKV))
        for kind in ("weight", "bias")
    )
    names = (
        (f"{self_attention}.proj", "self_attention.out"),
        *((f"{cross_attention}.{name}", f"cross_attention.{name}") for name in _QKV),
        (f"{cross_attention}.proj", "cross_attention.out"),
        ("norm0", "norm_self"),
        ("norm1", "norm_cross"),
        ("norm2", "norm_mlp"),
        ("mlp.fc1", "up"),
        ("mlp.fc2", "down"),
    )
    return (*fused, *(Rule(f"{theirs}.{key}.*", f"{ours}.{name}.*") for key, name in names))


TOKENIZER_RULES = (
    *eva_rules("encoder.", "encoder."),
    Rule("token_predictor.in_conv.*", "bottleneck.selector.read.*"),
    Rule("token_predictor.out_conv.*", "bottleneck.selector.decide.*"),
    *_layer_rules("causal_encoder.blocks.{}", "bottleneck.merger.layers.{}", "token_causal_attn", "token_cross_attn"),
    Rule("causal_encoder.ln_vision.*", "bottleneck.merger.norm_in.*"),
    Rule("causal_encoder.norm.*", "bottleneck.merger.norm_out.*"),
    Rule("encode_task_layer.*", "bottleneck.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.quantizer.codes"),
    Rule("vit_proj.*", "llm_projection.*"),
)

DECODER_RULES = (
    Rule("in_proj.*", "project_in.*"),
    Rule("pos_embed", "positions"),
    Rule("query_embed", "queries"),
    *_layer_rules("blocks.{}", "layers.{}", "self_attn", "cross_attn"),
    Rule("norm.*", "norm.*"),
    Rule("decode_task_layer.*", "project_out.*"),
)

MLP_RATIO = 4.3637
"""Of an MLP's width to the layer's, in both classes."""

LAYERS_HARMLESS = ("drop_rate", "attn_drop_rate")


def check_layers(config: Mapping[str, Any]) -> None:
    """Refuses layers of another kind than both classes have.

    Raises:
        ValueError: names the argument.
    """
    only(config, "qkv_bias", True)
    only(config, "ln_eps", 1e-5)
