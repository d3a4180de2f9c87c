"""Whole language models that an embedding or a head is read from: which ones, and what their configs say about other parts."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.published_config import check_model, only

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
    "internlm2",
)
"""Models that look ids up as they are, and whose logits are one product: nothing is scaled, shifted or capped."""

OTHER_PARTS = (
    *LANGUAGE_MODEL,
    "bias",  # of InternLM2's projections
    *("num_experts_per_tok", "num_local_experts", "norm_topk_prob"),  # Mixtral
    *("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id", "eof_token_id", "image_area"),  # Emu3
    *("swin_norm", "model_parallel_size", "vq_config.*", "vocabulary_map.*", "image_token_id"),  # Chameleon
    *("rope_theta_hw", "max_position_embeddings_hw"),  # NEO
    *("mm_*", "requires_cliploss", "add_moe", "moe_part", "patch_stride", "dense_stride", "conv_stride"),  # EVE
    *("patch_stride_clip", "image_size_clip", "max_size", "vision_tower_clip"),
    *("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution"),
    *("image_split_resolution", "tokenizer_model_max_length", "tokenizer_padding_side", "use_mm_proj", "unfreeze_mm_vision_tower"),
)
"""Entries of these models' configs that say nothing about the embedding or the head."""

WRAPPER = ("vision_config.*", "extra_num_layers(pre-buffer)")
"""Entries around the ``llm_config`` of a larger model."""


def embedding_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's config as ``vocab_size`` and ``dim``.

    Raises:
        ValueError: another model, such as one that scales its embeddings.
    """
    check_model(config, *PLAIN_MODELS)
    return {"vocab_size": config["vocab_size"], "dim": config["hidden_size"]}


def head_config(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """Likewise for a head, which is the embedding's own tensor if ``tied``.

    Raises:
        ValueError: another model, or one whose head is tied where it must not be, or the other way round.
    """
    only(config, "tie_word_embeddings", tied)
    if tied and config.get("tie_word_embeddings") is None:
        raise ValueError("the config has no tie_word_embeddings; accepted: True")
    return embedding_config(config)
