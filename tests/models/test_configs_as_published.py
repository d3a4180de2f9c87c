"""Configs as authors publish them, with all that transformers wrote beside: every entry is known."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.models.test_published_configs import LLAMA, VISION, arguments

OLDER_TRANSFORMERS: dict[str, Any] = {
    "_name_or_path": "",
    "_commit_hash": None,
    "transformers_version": "4.41.2",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "auto_map": {"AutoConfig": "configuration.Config"},
    "tokenizer_class": None,
    "use_bfloat16": False,
    "torchscript": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "remove_invalid_values": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rope_theta": 1e6,
    "rope_scaling": None,
    "max_position_embeddings": 4096,
    "pretraining_tp": 1,
}
"""What a config of a language model held beside its sizes."""

EMU3_IDS = dict.fromkeys(("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id", "eof_token_id", "image_area"), 100)
LLAVA = {
    "freeze_mm_mlp_adapter": False,
    "tune_mm_mlp_adapter": False,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "use_mm_proj": True,
    "tokenizer_padding_side": "right",
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "tokenizer_model_max_length": 2048,
    "tie_word_embeddings": False,
}
EVE1_TOWERS = {"mm_vision_tower": "openai/eve-patch14-anypixel-672", "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336"}
INTERNVL = {
    "model_type": "internvl_chat",
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "max_dynamic_patch": 6,
    "min_dynamic_patch": 1,
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internlm2-chat",
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": True,
}
AS_PUBLISHED: dict[str, Mapping[str, Any]] = {
    "emu3": {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], **EMU3_IDS, "tie_word_embeddings": False},
    "emu3.5": {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], **EMU3_IDS, "head_dim": 128},
    "eve1": {"model_type": "eve", "architectures": ["EVELlamaForCausalLM"], **LLAVA, **EVE1_TOWERS, "requires_cliploss": True},
    "eve2": {
        "model_type": "eve-qwen2",
        "architectures": ["EVEQwen2ForCausalLM"],
        "use_sliding_window": False,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "mm_vision_tower": "openai/eve-anyratio-res1600-patch16",
        **LLAVA,
    },
    "chameleon": {
        "model_type": "chameleon",
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_parallel_size": 1,
        "vocabulary_map": {"<s>": 0, "a.b": 5},
        "swin_norm": False,
        "mlp_bias": False,
        "vq_config": {"resolution": 512},
    },
    "orthus": {"model_type": "chameleon", "architectures": ["OrthusForConditionalGeneration"], "boi_token_id": 8197},
}


@pytest.mark.parametrize("name", [*AS_PUBLISHED, "eve2 trunk"])
def test_configs_as_they_are_published_are_taken(name: str) -> None:
    changes = {**OLDER_TRANSFORMERS, **AS_PUBLISHED[name.removesuffix(" trunk")]}
    assert arguments(name, changes)["rope_theta"] == 1e6


def test_configs_of_whole_models_as_they_are_published_are_taken() -> None:
    llm = {**OLDER_TRANSFORMERS, **LLAMA, "tie_word_embeddings": False, "architectures": ["InternLM2VEForCausalLM"]}
    vision = {"hidden_size": 1024, "model_type": "intern_vit_patch"}
    changes = {**INTERNVL, "llm_config": {**llm, "model_type": "internlm2", "bias": False}, "vision_config": vision}
    assert arguments("mono-internvl", changes)["rope_theta"] == 1e6

    own = {"rope_theta_hw": 1e4, "max_position_embeddings_hw": 10000, "extra_num_layers": 12, "attention_bias": False}
    qwen3 = {**llm, **own, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"] * 32}
    stem = {**VISION, "num_channels": 3, "max_position_embeddings_vision": 10000, "min_pixels": 65536, "max_pixels": 4194304}
    outer = {"model_type": "neo_chat", "architectures": ["NEOChatModel"], "hidden_size": 16, "img_start_token_id": 3}
    for name in ("neo", "neo trunk"):
        found = arguments(name, {**outer, "llm_config": qwen3, "vision_config": {**stem, "model_type": "neo_vision"}})
        assert found["num_prebuffer_layers"] == 12
