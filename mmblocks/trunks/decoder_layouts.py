"""What the published checkpoints of the Llama family look like, next to ``Decoder``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.trunks.derived_tables import inverse_frequencies
from mmblocks.trunks.families.layouts import FAMILY_LAYOUTS, OTHERWISE
from mmblocks.trunks.families.names import NOT_THE_TRUNK
from mmblocks.trunks.families.windowed import heads_of, windowed_config
from mmblocks.trunks.llama_config import LLAMA_HARMLESS

LLAMA_RULES = (
    Rule("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight"),
    Rule("model.layers.{}.self_attn.q_proj.*", "layers.{}.attention.query.*"),
    Rule("model.layers.{}.self_attn.k_proj.*", "layers.{}.attention.key.*"),
    Rule("model.layers.{}.self_attn.v_proj.*", "layers.{}.attention.value.*"),
    Rule("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.output.weight"),
    Rule("model.layers.{}.self_attn.q_norm.weight", "layers.{}.attention.query_norm.weight"),
    Rule("model.layers.{}.self_attn.k_norm.weight", "layers.{}.attention.key_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    Rule("model.layers.{}.mlp.gate_proj.weight", "layers.{}.mlp.gate.weight"),
    Rule("model.layers.{}.mlp.up_proj.weight", "layers.{}.mlp.up.weight"),
    Rule("model.layers.{}.mlp.down_proj.weight", "layers.{}.mlp.down.weight"),
    Rule("model.norm.weight", "norm.weight"),
)
"""Keys of the Llama family -> ``Decoder``."""

_FUSED = (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj.")
_HEAD_NORMS = (".q_norm.", ".k_norm.")
_PLAIN_RULES = tuple(rule for rule in LLAMA_RULES if not any(part in rule.theirs for part in _HEAD_NORMS))

PHI3_RULES: tuple[Rule | Split, ...] = (
    Split(
        "model.layers.{}.self_attn.qkv_proj.weight",
        tuple(f"layers.{{}}.attention.{part}.weight" for part in ("query", "key", "value")),
        sizes=lambda arguments: attention_rows(arguments),
    ),
    Split("model.layers.{}.mlp.gate_up_proj.weight", ("layers.{}.mlp.gate.weight", "layers.{}.mlp.up.weight")),
    *(rule for rule in _PLAIN_RULES if not any(part in rule.theirs for part in _FUSED)),
)
"""Keys of Phi-3, whose projections are fused -> ``Decoder``."""


def attention_rows(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows of query, key and value in one fused matrix."""
    heads = heads_of(arguments)
    head_dim = heads.head_dim or arguments["dim"] // heads.num_heads
    return heads.num_heads * head_dim, heads.kv_heads * head_dim, heads.kv_heads * head_dim


INVERSE_FREQUENCIES = inverse_frequencies("model.layers.{}.self_attn.rotary_emb.inv_freq")
"""The angles, which older files hold once a layer."""

_EMU3_IDS = ("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id", "eof_token_id", "image_area")


def _layout(name: str, rules: tuple[Rule | Split, ...], config: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Layout:
    return Layout(
        name,
        rules,
        ignored=NOT_THE_TRUNK,
        config=config,
        derived=(INVERSE_FREQUENCIES,),
        harmless=(*LLAMA_HARMLESS, *_EMU3_IDS),
        otherwise=OTHERWISE,
    )


DECODER_LAYOUTS = (
    _layout("llama", _PLAIN_RULES, partial(windowed_config, models=("llama", "mistral", "ministral", "emu3", "emu3_text_model"))),
    _layout("llama-qk-norm", LLAMA_RULES, partial(windowed_config, models=("qwen3", "emu3"), qk_norm=True)),
    _layout("qwen2", _PLAIN_RULES, partial(windowed_config, models=("qwen2",), qkv_bias=True)),
    _layout("phi3", PHI3_RULES, partial(windowed_config, models=("phi3",))),
    *FAMILY_LAYOUTS,
)
"""Llama, Mistral and Emu3; Qwen3 and Emu3.5; Qwen2 and Qwen2.5; Phi-3; and the families beside them."""
