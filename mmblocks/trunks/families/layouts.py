"""The layouts of the families that a ``Decoder`` follows, beside those of ``decoder_layouts``."""

from collections.abc import Callable, Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.trunks.families import gemma, layer_norms, llama_like, mixtures
from mmblocks.trunks.families.names import NOT_THE_TRUNK
from mmblocks.trunks.llama_config import LLAMA_HARMLESS

OTHERWISE = "TransformersTrunk loads most other decoders of transformers"

_HEADS = ("logits_scaling", "logit_scale", "scale_emb", "dim_model_base", "final_logit_softcapping")
"""Factors of the embedding and of the head."""

Config = Callable[[Mapping[str, Any]], dict[str, Any]]


def _layout(name: str, rules: tuple[Rule | Split, ...], config: Config, *harmless: str) -> Layout:
    return Layout(
        name,
        rules,
        ignored=(*NOT_THE_TRUNK, "lm_head.bias"),
        config=config,
        harmless=(*LLAMA_HARMLESS, *_HEADS, *harmless),
        otherwise=OTHERWISE,
    )


FAMILY_LAYOUTS = (
    _layout("gemma", gemma.GEMMA_RULES, gemma.gemma_config, *gemma.GEMMA_HARMLESS),
    _layout("gemma2", gemma.GEMMA2_RULES, gemma.gemma2_config, *gemma.GEMMA_HARMLESS),
    _layout("gemma3", gemma.GEMMA3_RULES, gemma.gemma3_config, *gemma.GEMMA_HARMLESS),
    _layout("granite", llama_like.LLAMA_LIKE_RULES, llama_like.granite_config),
    _layout("minicpm", llama_like.LLAMA_LIKE_RULES, llama_like.minicpm_config),
    _layout("smollm3", llama_like.LLAMA_LIKE_RULES, llama_like.smollm3_config),
    _layout("helium", llama_like.LLAMA_LIKE_RULES, llama_like.helium_config),
    _layout("ernie4_5", llama_like.LLAMA_LIKE_RULES, llama_like.ernie_config),
    _layout("seed_oss", llama_like.LLAMA_LIKE_RULES, llama_like.seed_oss_config),
    _layout("arcee", llama_like.LLAMA_LIKE_RULES, llama_like.arcee_config),
    _layout("glm", llama_like.GLM4_RULES, llama_like.glm_config),
    _layout("olmo2", llama_like.OLMO2_RULES, llama_like.olmo2_config),
    _layout("exaone4", llama_like.OLMO2_RULES, llama_like.exaone4_config),
    _layout(
        "cohere",
        layer_norms.COHERE_RULES,
        layer_norms.cohere_config,
        *("use_embedding_sharing", "use_parallel_embedding", "model_max_length", "cache_implementation", "_sliding_window_pattern"),
    ),
    _layout("stablelm", layer_norms.STABLELM_RULES, layer_norms.stablelm_config),
    _layout("phi", layer_norms.PHI_RULES, layer_norms.phi_config),
    _layout("starcoder2", layer_norms.STARCODER2_RULES, layer_norms.starcoder2_config),
    _layout("olmo", layer_norms.OLMO_RULES, layer_norms.olmo_config),
    _layout("qwen3_moe", mixtures.QWEN3_MOE_RULES, mixtures.qwen3_moe_config),
    _layout("qwen2_moe", mixtures.QWEN2_MOE_RULES, mixtures.qwen2_moe_config),
)
