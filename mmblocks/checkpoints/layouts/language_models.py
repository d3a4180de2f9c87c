"""Whole language models that an embedding or a head is read from: which ones, and what their configs say about other parts."""

from collections.abc import Callable, Mapping
from typing import Any

from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.published_config import check_model, only, stated

EVE_TRAINING = (
    *("tune_mm_mlp_adapter", "tune_VE", "tune_LLM", "tune_MOE", "freeze_backbone", "freeze_mm_mlp_adapter", "init_moe"),
    *("tune_vision_tower", "freeze_vision_tower", "unfreeze_mm_vision_tower"),
    *("mm_projector_lr", "vision_tower_lr", "mm_vision_tower_lr", "requires_cliploss"),
    *("mm_vision_select_layer", "mm_vision_select_feature", "use_mm_proj", "mm_use_im_start_end", "mm_use_im_patch_token"),
    *("image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution", "mm_patch_merge_type"),
    *("tokenizer_model_max_length", "tokenizer_padding_side", "max_sequence_length", "model_max_length"),
)
"""How an EVE was trained, its teacher, and ways with images that it does not have: LLaVA's, from whose code it comes."""

PLAIN_MODELS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "emu3",
    "emu3_text_model",
    "eve",
    "eve_llama",
    "eve-qwen2",
    "evev2",
    "chameleon",
    "chameleon_xllmx",
    "internlm2",
    "internlm2ve",
    "ministral",
    "smollm3",
    "helium",
    "ernie4_5",
    "seed_oss",
    "arcee",
    "glm",
    "glm4",
    "olmo",
    "olmo2",
    "olmo3",
    "exaone4",
    "stablelm",
    "starcoder2",
    "qwen2_moe",
    "qwen3_moe",
)
"""Models that look ids up as they are, and whose logits are one product: nothing is scaled, shifted or capped."""

Factor = Callable[[Mapping[str, Any]], Any]

EMBEDDING_SCALES: dict[str, Factor] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), lambda config: config["hidden_size"] ** 0.5),
    "minicpm": lambda config: stated(config, "scale_emb", 1),
}
"""What vectors of ids are multiplied by. Granite's factor is not here: it is the trunk's, and multiplies images too."""

LOGIT_SCALES: dict[str, Factor] = {
    "granite": lambda config: 1 / stated(config, "logits_scaling", 1.0),
    **dict.fromkeys(("cohere", "cohere2"), lambda config: stated(config, "logit_scale", 0.0625)),
    "minicpm": lambda config: stated(config, "dim_model_base", 1) / config["hidden_size"],
}
"""What logits are multiplied by."""

SOFTCAPS: dict[str, Factor] = {
    "gemma2": lambda config: config.get("final_logit_softcapping", 30.0),  # null, which says something, is none
    "gemma3_text": lambda config: config.get("final_logit_softcapping"),
}
"""What caps logits softly."""

BIASED = ("phi",)
"""Models whose head adds an offset to each id."""

OTHER_MODELS = tuple(dict.fromkeys((*EMBEDDING_SCALES, *LOGIT_SCALES, *SOFTCAPS, *BIASED)))
"""Models that are not plain: a config has to name them."""

TIED = ("gemma", "gemma2", "gemma3_text", "smollm3", "ernie4_5", "cohere", "cohere2", "starcoder2", "minicpm")
"""Models whose head is the embedding's tensor where their config does not say."""

OTHER_PARTS = (
    *LANGUAGE_MODEL,
    "bias",  # of InternLM2's projections
    *("num_experts_per_tok", "num_local_experts", "norm_topk_prob"),  # Mixtral
    *("use_mrope", "dual_chunk_attention_config.*", "max_sequence_length"),  # Qwen2.5, and the first files of LLaMA
    *("full_attn_mod", "interpolate_factor", "lm_head_bias"),  # Phi-4-mini; a head reads the last
    *("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id", "eof_token_id", "image_area"),  # Emu3
    *("swin_norm", "qk_layernorm", "model_parallel_size", "vq_config.*", "vocabulary_map.*", "image_token_id"),  # Chameleon
    *("mask_image_logits", "z_loss_weight"),  # Lumina-mGPT; which ids may come is what the callers of a head say
    *("rope_theta_hw", "max_position_embeddings_hw", "extra_num_layers"),  # NEO
    *("mm_*", "add_moe", "moe_part", "init_moe", "patch_stride", "dense_stride", "conv_stride"),  # EVE
    *EVE_TRAINING,
    *("patch_stride_clip", "image_size_clip", "max_size", "vision_tower_clip"),
    *("attn_logit_softcapping", "query_pre_attn_scalar", "hidden_activation", "use_bidirectional_attention"),  # Gemma
    *("cache_implementation", "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"),
    *("attention_multiplier", "residual_multiplier", "embedding_multiplier"),  # Granite
    "scale_depth",  # MiniCPM
    *("no_rope_layers", "no_rope_layer_interval", "attention_out_bias", "clip_qkv"),  # SmolLM3, Seed-OSS, OLMo
    *("layer_norm_eps", "norm_epsilon", "use_bias", "use_qkv_bias", "use_qk_norm", "use_parallel_residual"),  # with LayerNorm
    *("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"),  # Qwen's mixtures
    *("decoder_sparse_step", "mlp_only_layers", "qkv_bias"),
    *("sliding_window_size", "rotary_scaling_factor", "norm_type", "mlp_type"),  # Gemma 2, StableLM, StarCoder 2
    *("use_parallel_block", "use_gated_activation", "rotary_pct", "position_embedding_type", "layer_switch"),  # Command R7B
    *("order_of_interleaved_layers", "use_embedding_sharing", "use_parallel_embedding", "model_max_length"),
)
"""Entries of these models' configs that say nothing about the embedding or the head."""

NO_EMBEDDING = (*OTHER_PARTS, "logits_scaling", "logit_scale", "dim_model_base", "final_logit_softcapping")
"""Entries that say nothing about the embedding."""

NO_HEAD = (*OTHER_PARTS, "scale_emb")
"""Entries that say nothing about the head."""

INTERNVL = (
    *("vision_config.*", "hidden_size", "tie_word_embeddings", "use_backbone_lora", "use_llm_lora"),
    *("pad2square", "select_layer", "force_image_size", "dynamic_image_size", "use_thumbnail", "image_fold", "ps_version"),
    *("min_dynamic_patch", "max_dynamic_patch", "template", "system_message", "img_context_token_id", "use_img_start_end_tokens"),
)
"""Of an InternVL's images before they are read, of prompts and of training; copies of entries inside.

``ps_version`` is for the order in which patches are folded, before the projector.
"""

WRAPPER = (
    *(*INTERNVL, "downsample_ratio", "patch_size", "img_start_token_id"),
    *("loss_reduction", "extra_num_layers(pre-buffer)", "extra_num_layers"),
)
"""Entries around the ``llm_config`` of a larger model: NEO's, and Mono-InternVL's."""


def language_model(config: Mapping[str, Any], *wrappers: str) -> Mapping[str, Any]:
    """The ``llm_config`` of a larger model, whose ``model_type`` is one of these."""
    check_model(config, *wrappers)
    inner: Mapping[str, Any] = config["llm_config"]
    return inner


def embedding_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's config as ``vocab_size``, ``dim`` and, where it has one, ``scale``.

    Raises:
        ValueError: another model, or factors of another one.
    """
    kind = _model(config)
    if kind != "granite":
        only(config, "embedding_multiplier", 1)
    return {**_sizes(config), **_factors(config, kind, scale=EMBEDDING_SCALES)}


def head_config(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """Likewise for a head, which is the embedding's own tensor if ``tied``; it may have a ``scale``, ``softcap`` and ``bias``.

    Raises:
        ValueError: another model, or one whose head is tied where it must not be, or the other way round.
    """
    kind = _model(config)
    only(config, "tie_word_embeddings", tied)
    only(config, "lm_head_bias", False)
    if config.get("tie_word_embeddings") is None and tied != (kind in TIED):
        raise ValueError(f"the config has no tie_word_embeddings; accepted: {tied}")
    bias = {"bias": True} if kind in BIASED else {}
    return {**_sizes(config), **_factors(config, kind, scale=LOGIT_SCALES, softcap=SOFTCAPS), **bias}


def _model(config: Mapping[str, Any]) -> str:
    """The language model that a config names, or "".

    Raises:
        ValueError: one that is not known, or a class of another one than ``model_type`` names.
    """
    kind = str(stated(config, "model_type", "")).lower()
    check_model(config, *PLAIN_MODELS, *OTHER_MODELS)
    check_model(config, *((kind,) if kind in OTHER_MODELS else PLAIN_MODELS))
    return kind


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"vocab_size": config["vocab_size"], "dim": config["hidden_size"]}


def _factors(config: Mapping[str, Any], kind: str, **tables: Mapping[str, Factor]) -> dict[str, Any]:
    """The arguments that a table has an entry for."""
    return {name: table[kind](config) for name, table in tables.items() if kind in table}
