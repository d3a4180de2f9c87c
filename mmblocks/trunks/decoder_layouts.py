"""What the published checkpoints of the Llama family look like, next to ``Decoder``."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule, Split
from mmblocks.layers.rotary_scaling import yarn_growth


def llama_config(config: Mapping[str, Any], *, qk_norm: bool = False) -> dict[str, Any]:
    """A transformers config of the Llama family as ``Decoder`` arguments.

    Raises:
        ValueError: a sliding window or partly rotated heads, which ``Decoder`` does not have.
    """
    _check_followed(config)
    num_heads = config["num_attention_heads"]
    return {
        "dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": num_heads,
        "num_kv_heads": config.get("num_key_value_heads") or num_heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // num_heads,
        "mlp_dim": config["intermediate_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0),
        "rope_scaling": _scaling(config),
        "qk_norm": qk_norm,
    }


def qwen2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config of Qwen2 or Qwen2.5 as ``Decoder`` arguments; that q, k and v have biases is not in it."""
    return {**llama_config(config), "qkv_bias": True}


def _scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``rope_scaling`` of ``Decoder``. Newer files have it among the ``rope_parameters``, older ones call longrope "su"."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("type", given.get("rope_type", "default"))
    match kind:
        case "default":
            return None
        case "dynamic":
            return {"type": kind, "factor": given["factor"], "max_position": config["max_position_embeddings"]}
        case "longrope" | "su":
            trained = _trained(config, given)
            return {
                "type": "longrope",
                "factor": given.get("factor") or config["max_position_embeddings"] / trained,
                "max_position": trained,
                "short_factor": tuple(given["short_factor"]),
                "long_factor": tuple(given["long_factor"]),
            }
        case "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor")
            return {"type": kind, **{name: given[name] for name in names}, "max_position": _trained(config, given)}
        case "yarn":
            return {"type": kind, **_yarn(given, config["max_position_embeddings"], _trained(config, given))}
        case _:
            return {"type": kind, "factor": given["factor"]}


def _trained(config: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """The length that was trained with; the longest one where nothing else is said."""
    name = "original_max_position_embeddings"
    length: int = given.get(name) or config.get(name) or config["max_position_embeddings"]
    return length


def _yarn(given: Mapping[str, Any], longest: int, trained: int) -> dict[str, Any]:
    """YaRN's entries; a config may give two weights in place of the growth of queries and keys (DeepSeek)."""
    factor = given.get("factor") or longest / trained
    growth, above, below = (given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if growth is None and above and below:
        growth = yarn_growth(factor, above) / yarn_growth(factor, below)
    more = {name: given.get(name) for name in ("beta_fast", "beta_slow", "truncate")} | {"attention_factor": growth}
    return {"factor": factor, "max_position": trained, **{name: value for name, value in more.items() if value is not None}}


def _check_followed(config: Mapping[str, Any]) -> None:
    window = config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", True) and window < config.get("max_position_embeddings", window):
        raise ValueError(f"sliding_window is {window}; accepted: none, or one as long as max_position_embeddings")
    rotated = config.get("partial_rotary_factor") or config.get("rope_parameters", {}).get("partial_rotary_factor", 1.0)
    if rotated != 1.0:
        raise ValueError(f"partial_rotary_factor is {rotated}; accepted: 1, heads that are rotated as a whole")


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
    head_dim = arguments["head_dim"] or arguments["dim"] // arguments["num_heads"]
    key = (arguments["num_kv_heads"] or arguments["num_heads"]) * head_dim
    return arguments["num_heads"] * head_dim, key, key


NOT_THE_TRUNK = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.{}.self_attn.rotary_emb.inv_freq")
"""Tensors of a language model that belong to other parts, or to none."""

DECODER_LAYOUTS = (
    Layout("llama", _PLAIN_RULES, ignored=NOT_THE_TRUNK, config=llama_config),
    Layout("llama-qk-norm", LLAMA_RULES, ignored=NOT_THE_TRUNK, config=partial(llama_config, qk_norm=True)),
    Layout("qwen2", _PLAIN_RULES, ignored=NOT_THE_TRUNK, config=qwen2_config),
    Layout("phi3", PHI3_RULES, ignored=NOT_THE_TRUNK, config=llama_config),
)
"""Llama and Emu3; Qwen3 and Emu3.5; Qwen2 and Qwen2.5; Phi-3."""
