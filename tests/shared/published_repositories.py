"""Configs of published repositories, whole as they lie there, with small sizes where they do not matter."""

from collections.abc import Mapping
from typing import Any

from tests.models.test_configs_as_published import OLDER_TRANSFORMERS

LIBRARY = {
    name: OLDER_TRANSFORMERS[name] for name in ("_name_or_path", "transformers_version", "torch_dtype", "use_cache", "auto_map")
}
IDS = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "initializer_range": 0.02, "attention_dropout": 0.0}
LLAMA: dict[str, Any] = {
    **LIBRARY,
    **IDS,
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 100,
}
NO_LENGTH = {name: value for name, value in LLAMA.items() if name not in ("rope_scaling", "rope_theta", "num_key_value_heads")}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
QWEN2 = {
    **LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_window_layers": 28,
    "sliding_window": 131072,
    "use_sliding_window": False,
}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 16}
PHI3 = {
    **LLAMA,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "attention_bias": False,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
}
LONGROPE = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "type": "longrope"}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
MIXTRAL = {"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False, "router_aux_loss_coef": 0.02}
EVE = {
    "freeze_mm_mlp_adapter": False,
    "tune_mm_mlp_adapter": False,
    "tune_VE": True,
    "tune_LLM": True,
    "vision_tower_lr": None,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_patch_merge_type": "flat",
    "use_mm_proj": True,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "unfreeze_mm_vision_tower": True,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "tune_vision_tower": True,
}
EVE1 = {
    **LLAMA,
    **EVE,
    "architectures": ["EVELlamaForCausalLM"],
    "model_type": "eve",
    "requires_cliploss": True,
    "mm_vision_tower": "openai/eve-patch14-anypixel-672",
    "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336",
}
EVE2 = {
    **QWEN2,
    **EVE,
    "architectures": ["EVEQwen2ForCausalLM"],
    "model_type": "eve-qwen2",
    "tune_MOE": True,
    "add_moe": True,
    "moe_part": "self_attn-mlp-layernorm",
    "init_moe": True,
    "mm_vision_tower": "openai/eve-anyratio-res1600-patch16",
}
CHAMELEON_VQ = {
    "attn_resolutions": [],
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "double_latent": False,
    "dropout": 0.0,
    "embed_dim": 256,
    "in_channels": 3,
    "latent_channels": 256,
    "num_embeddings": 8192,
    "num_res_blocks": 2,
    "resolution": 512,
    "out_ch": 3,
    "out_channels": 3,
}
CHAMELEON = {
    **LLAMA,
    "architectures": ["ChameleonForConditionalGeneration"],
    "model_type": "chameleon",
    "vq_config": CHAMELEON_VQ,
    "attention_bias": False,
    "mlp_bias": False,
    "swin_norm": False,
    "qk_layernorm": True,
    "model_parallel_size": 1,
    "vocabulary_map": {"<pad>": 1, "IMGIMGAZ": 4},
}
JANUS_PRO = {
    **LIBRARY,
    "architectures": ["MultiModalityCausalLM"],
    "model_type": "multi_modality",
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 64, "projector_type": "mlp_gelu"},
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": 8, "n_embed": 64, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "model_type": "gen_head",
        "params": {"image_token_embed": 64, "image_token_size": 16384, "n_embed": 64},
    },
    "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}},
    "language_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
}
IMAGE_IDS = {"boi_token_id": 8197, "eoi_token_id": 8196, "image_token_id": 8711}
XLLMX = {"architectures": ["ChameleonXLLMXForConditionalGeneration"], "mask_image_logits": False, "z_loss_weight": 1e-5}
NEO = {
    **LIBRARY,
    "architectures": ["NEOChatModel"],
    "model_type": "neo_chat",
    "template": "neo1_0",
    "hidden_size": 64,
    "downsample_ratio": 0.5,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "tie_word_embeddings": True,
    "llm_config": {**QWEN3, "tie_word_embeddings": True, "rope_theta_hw": 1e4, "max_position_embeddings_hw": 10000},
    "vision_config": {"model_type": "neo_vision", "llm_hidden_size": 64, "patch_size": 16, "downsample_ratio": 0.5},
    "extra_num_layers(pre-buffer)": 1,
}
INTERNVL = {
    **LIBRARY,
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "template": "internlm2-chat",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "use_thumbnail": True,
    "pad2square": False,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "ps_version": "v2",
    "select_layer": -1,
    "image_fold": None,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "system_message": None,
    "use_img_start_end_tokens": True,
    "llm_config": {**LLAMA, "architectures": ["InternLM2VEForCausalLM"], "model_type": "internlm2", "bias": False},
    "vision_config": {"architectures": ["InternVisionPatchModel"], "model_type": "intern_vit_patch", "hidden_size": 1024},
}
EMU2 = {
    **LLAMA,
    "architectures": ["EmuForCausalLM"],
    "model_type": "emu",
    "d_model": 1792,
    "vision_config": {
        "eva_model_name": "eva-clip-E-14-plus",
        "drop_path_rate": 0,
        "head_width": 112,
        "image_size": 448,
        "layers": 64,
        "intermediate_size": 15360,
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 60 / 7,
        "n_query": 64,
        "v_query": 64,
        "patch_size": 14,
        "postnorm": True,
        "qkv_bias": True,
        "width": 1792,
        "xattn": True,
    },
}
LLAVA_ONEVISION = {
    **QWEN2,
    **EVE,
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "image_token_index": 151646,
    "add_faster_video": False,
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
    "pos_skipping_range": 4096,
}
del (
    LLAVA_ONEVISION["tune_VE"],
    LLAVA_ONEVISION["tune_LLM"],
    LLAVA_ONEVISION["vision_tower_lr"],
    LLAVA_ONEVISION["tune_vision_tower"],
)
TITOK: dict[str, Any] = {
    "experiment": {"tokenizer_checkpoint": "tokenizer_titok_l32.bin", "generator_checkpoint": "x.bin", "output_dir": "titok_l_32"},
    "dataset": {"preprocessing": {"crop_size": 256}},
    "model": {
        "vq_model": {
            "codebook_size": 4096,
            "token_size": 12,
            "use_l2_norm": True,
            "commitment_cost": 0.25,
            "num_latent_tokens": 32,
            "vit_enc_model_size": "large",
            "vit_dec_model_size": "large",
            "vit_enc_patch_size": 16,
            "vit_dec_patch_size": 16,
            "finetune_decoder": True,
        },
        "generator": {"model_type": "ViT", "hidden_size": 768, "num_hidden_layers": 24, "mask_schedule_strategy": "arccos"},
    },
}
TIMM = {"tag": "webli", "input_size": [3, 224, 224], "fixed_input_size": True, "pool_size": None, "first_conv": "patch_embed.proj"}

REPOSITORIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "huggyllama/llama-7b": (
        {**NO_LENGTH, "architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048},
        "Decoder:llama TextEmbedding:llama LMHead:llama",
    ),
    "meta-llama/Llama-3.1-8B": ({**LLAMA, "mlp_bias": False, "rope_scaling": LLAMA3}, "Decoder:llama LMHead:llama"),
    "meta-llama/Llama-3.2-1B": ({**LLAMA, "head_dim": 16, "tie_word_embeddings": True}, "Decoder:llama LMHead:llama-tied"),
    "mistralai/Mistral-Nemo-Base-2407": ({**MISTRAL, "head_dim": 128}, "Decoder:llama TextEmbedding:llama LMHead:llama"),
    "mistralai/Mixtral-8x22B-v0.1": (
        {**MISTRAL, **MIXTRAL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "router_jitter_noise": 0.0},
        "MoEDecoder:mixtral TextEmbedding:llama LMHead:llama",
    ),
    "Qwen/Qwen2.5-7B": ({**QWEN2, "use_mrope": False}, "Decoder:qwen2 TextEmbedding:llama LMHead:llama"),
    "Qwen/Qwen2.5-7B-Instruct-1M": (
        {**QWEN2, "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}},
        "TextEmbedding:llama LMHead:llama",
    ),
    "Qwen/Qwen3-0.6B": (
        {**QWEN3, "tie_word_embeddings": True, "sliding_window": None},
        "Decoder:llama-qk-norm TextEmbedding:llama LMHead:llama-tied",
    ),
    "microsoft/Phi-3.5-mini-instruct": ({**PHI3, "rope_scaling": LONGROPE}, "Decoder:phi3 TextEmbedding:llama LMHead:llama"),
    "microsoft/Phi-4-mini-instruct": (
        {
            **PHI3,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "rope_scaling": LONGROPE,
        },
        "TextEmbedding:llama LMHead:llama-tied",
    ),
    "BAAI/EVE-7B-v1.0": (EVE1, "EVE1:eve1 EVE1PatchEmbedding:eve1 EVE1PatchAlignment:eve1 TextEmbedding:llama LMHead:llama"),
    "BAAI/EVE-7B-HD-v2.0": (EVE2, "EVE2:eve2 EVE2PatchEmbedding:eve2 RoutedDecoder:eve2 TextEmbedding:llama LMHead:llama"),
    "facebook/chameleon-7b": (
        CHAMELEON,
        "Chameleon:chameleon ChameleonTrunk:chameleon ChameleonVQ:chameleon-transformers-whole TextEmbedding:llama LMHead:llama",
    ),
    "leloy/Anole-7b-v0.1-hf": (
        {**CHAMELEON, **IMAGE_IDS},
        "Chameleon:chameleon ChameleonTrunk:chameleon ChameleonVQ:chameleon-transformers-whole TextEmbedding:llama LMHead:llama",
    ),
    "Alpha-VLLM/Lumina-mGPT-7B-768": (
        {**CHAMELEON, **XLLMX},
        "Chameleon:chameleon ChameleonTrunk:chameleon ChameleonVQ:chameleon-transformers-whole TextEmbedding:llama LMHead:llama",
    ),
    "deepseek-ai/Janus-Pro-1B": (JANUS_PRO, "Janus:janus LlamaGenVQ:janus"),
    "SJTU-Deng-Lab/Orthus-7B-base": (
        {**CHAMELEON, **IMAGE_IDS, "architectures": ["OrthusForConditionalGeneration"], "diffloss_w": 1536, "diffloss_d": 3},
        "Orthus:orthus OrthusDiffusionHead:orthus SoftCodeEmbedding:orthus",
    ),
    "Paranioar/NEO1_0-2B-SFT": (NEO, "NEO:neo NEOTrunk:neo NEOPatchEmbedding:neo TextEmbedding:neo LMHead:neo-tied"),
    "OpenGVLab/Mono-InternVL-2B": (
        INTERNVL,
        "RoutedDecoder:mono-internvl TextEmbedding:mono-internvl LMHead:mono-internvl MLPProjector:internvl",
    ),
    "BAAI/Emu2": (EMU2, "RegressionHead:emu2-hub Emu2DownProjection:emu2-hub Emu2UpProjection:emu2-hub Emu2Latents:emu2-hub"),
    "lmms-lab/llava-onevision-qwen2-7b-ov": (LLAVA_ONEVISION, "MLPProjector:llava"),
    "yucornetto/tokenizer_titok_l32_imagenet": (TITOK, "TiTok:titok"),
    "timm/vit_base_patch16_siglip_224.webli": (
        {
            "architecture": "vit_base_patch16_siglip_224",
            "num_classes": 0,
            "num_features": 768,
            "global_pool": "map",
            "pretrained_cfg": TIMM,
            "model_args": {"num_classes": 0, "in_chans": 3, "global_pool": "map", "drop_rate": 0.1},
        },
        "TimmEncoder:timm",
    ),
}
"""Repository -> its config, and the layouts that read it: Class:layout."""
