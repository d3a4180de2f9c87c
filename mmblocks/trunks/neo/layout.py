"""What NEO's checkpoints look like, next to ``NEOTrunk``: a Qwen3 whose queries and keys have more projections."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, check_window, rotary
from mmblocks.trunks.llama_published import published_llama


def neo_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """NEO's config, or that of its language model alone, as ``NEOTrunk`` arguments; defaults are those of NEO's own class.

    Raises:
        ValueError: another model, or what ``NEOTrunk`` does not have: another activation, scaled rotary angles, a sliding window.
    """
    llm = config.get("llm_config", config)
    check_model(llm, "qwen3", "neo_llm")
    if "llm_config" in config:
        check_model(config, "neo_chat")
    only(llm, "hidden_act", "silu", "swish")
    check_window(llm, "qwen3")
    theta, scaling = rotary(llm, "qwen3")
    if scaling is not None:
        raise ValueError(f"rope_scaling is {scaling}; accepted: none, as published")
    num_layers = llm["num_hidden_layers"]
    return {
        "dim": llm["hidden_size"],
        "num_layers": num_layers,
        "num_heads": llm["num_attention_heads"],
        "num_kv_heads": llm["num_key_value_heads"],
        "head_dim": llm.get("head_dim", 128),
        "mlp_dim": llm["intermediate_size"],
        "norm_eps": llm["rms_norm_eps"],
        "rope_theta": theta,
        "rope_theta_place": llm.get("rope_theta_hw", 10000.0),
        "bias": llm.get("attention_bias", False),
        "num_prebuffer_layers": _num_prebuffer_layers(config, llm, num_layers),
    }


def _num_prebuffer_layers(config: Mapping[str, Any], llm: Mapping[str, Any], num_layers: int) -> int:
    """Two where it is not said, if there are as many."""
    given = llm.get("extra_num_layers", config.get("extra_num_layers(pre-buffer)"))
    return min(2, num_layers) if given is None else int(given)


def published_language_model(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back, of the language model alone."""
    config = published_llama({**arguments, "rope_scaling": None}, model_type="qwen3", architecture="Qwen3ForCausalLM")
    return {
        **config,
        "rope_theta_hw": arguments["rope_theta_place"],
        "attention_bias": arguments["bias"],
        "extra_num_layers": arguments["num_prebuffer_layers"],
        "tie_word_embeddings": arguments.get("tie_embeddings", False),
    }


def published_neo(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; a whole model's config has that of its vision part beside it."""
    return {"model_type": "neo_chat", "architectures": ["NEOChatModel"], "llm_config": published_language_model(arguments)}


_PARTS_OF_PROJECTION = (
    ("proj.*", "step.*"),
    ("proj_hw.*", "place.*"),
    ("norm.weight", "step_norm.weight"),
    ("norm_h.weight", "row_norm.weight"),
    ("norm_w.weight", "column_norm.weight"),
)
_RULES = (
    *(
        Rule(f"model.layers.{{}}.self_attn.{side}_{theirs}", f"layers.{{}}.attention.{projection}.{ours}")
        for side, projection in (("q", "query"), ("k", "key"))
        for theirs, ours in _PARTS_OF_PROJECTION
    ),
    Rule("model.layers.{}.self_attn.v_proj.*", "layers.{}.attention.value.*"),
    Rule("model.layers.{}.self_attn.o_proj.*", "layers.{}.attention.output.*"),
    *(rule for rule in LLAMA_RULES if "self_attn" not in rule.theirs),
)

NEO_RULES = tuple(Rule(f"language_model.{rule.theirs}", rule.ours) for rule in _RULES)
"""Keys of a whole NEO -> ``NEOTrunk``."""

NEO_HARMLESS = (
    *(f"llm_config.{name}" for name in (*LLAMA_HARMLESS, "max_position_embeddings_hw")),
    # copies of entries inside, and ids and sizes that callers say
    *("hidden_size", "tie_word_embeddings", "img_start_token_id", "img_context_token_id", "downsample_ratio", "patch_size"),
    *("extra_num_layers(pre-buffer)", "extra_num_layers", "loss_reduction", "template", "use_backbone_lora", "use_llm_lora"),
)
"""Entries of NEO's config that neither its vision part nor its trunk follows."""

NEO_LAYOUTS = (
    Layout(
        "neo",
        NEO_RULES,
        ignored=("vision_model.*", "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        config=neo_config,
        published_config=published_neo,
        harmless=(*NEO_HARMLESS, *LLAMA_HARMLESS, "max_position_embeddings_hw", "vision_config.*"),
    ),
    Layout(
        "neo-llm",
        _RULES,
        ignored=("model.embed_tokens.weight", "lm_head.weight"),
        config=neo_config,
        published_config=published_language_model,
        harmless=(*LLAMA_HARMLESS, "max_position_embeddings_hw"),
    ),
)
"""Of ``NEOTrunk``: in a whole NEO, and in its language model alone."""
