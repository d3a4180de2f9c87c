"""Published configs of whole models and of trunks: every entry is followed, refused, or known to change no numbers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mmblocks import EVE1, EVE2, Emu3, LlamaGen, LlamaGenT2I, RoutedDecoder
from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout
from mmblocks.models.neo import NEO
from mmblocks.models.orthus import Orthus
from mmblocks.trunks.acdit import ACDiT
from mmblocks.trunks.chameleon import ChameleonTrunk
from mmblocks.trunks.mar import MAR
from mmblocks.trunks.neo import NEOTrunk
from mmblocks.trunks.var import VAR

LLAMA: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
EVE1_CONFIG = {**LLAMA, "mm_hidden_size": 8, "mm_projector_type": "mlp2x_gelu"}
EVE2_CONFIG = {**LLAMA, "mm_hidden_size": 8, "add_moe": True, "moe_part": "self_attn-mlp"}
VISION = {"llm_hidden_size": 16, "downsample_ratio": 0.5, "hidden_size": 8, "patch_size": 4, "rope_theta_vision": 1e4}
NEO_CONFIG = {"llm_config": LLAMA, "vision_config": VISION}
MONO = {"llm_config": {**LLAMA, "bias": False}}
MAR_CONFIG = {f"{half}_{name}": 16 for half in ("encoder", "decoder") for name in ("embed_dim", "depth", "num_heads")}
VAR_CONFIG = {"embed_dim": 16, "depth": 2, "num_heads": 2}
ACDIT_CONFIG = {"hidden_size": 16, "depth": 2, "num_heads": 2, "block_size": 4, "spatial_len": 16}
LLAMAGEN_CONFIG = {"dim": 16, "n_layer": 2, "n_head": 2}

CONFIGS: dict[str, tuple[type[Block], Mapping[str, Any]]] = {
    "emu3": (Emu3, LLAMA),
    "emu3.5": (Emu3, LLAMA),
    "eve1": (EVE1, EVE1_CONFIG),
    "eve2": (EVE2, EVE2_CONFIG),
    "eve2 trunk": (RoutedDecoder, EVE2_CONFIG),
    "mono-internvl": (RoutedDecoder, MONO),
    "neo": (NEO, NEO_CONFIG),
    "neo trunk": (NEOTrunk, NEO_CONFIG),
    "neo-llm": (NEOTrunk, LLAMA),
    "chameleon": (ChameleonTrunk, LLAMA),
    "orthus": (Orthus, {**LLAMA, "vq_config": {"num_embeddings": 8, "embed_dim": 4}}),
    "mar": (MAR, MAR_CONFIG),
    "var": (VAR, VAR_CONFIG),
    "acdit": (ACDiT, ACDIT_CONFIG),
    "llamagen-c2i": (LlamaGen, LLAMAGEN_CONFIG),
    "llamagen-t2i": (LlamaGenT2I, {**LLAMAGEN_CONFIG, "model_type": "t2i"}),
}
"""Layout (and " trunk" where two classes have one of that name) -> its class, and the least its config says."""


def layout_of(name: str) -> Layout:
    (layout,) = (layout for layout in CONFIGS[name][0].layouts if layout.name == name.removesuffix(" trunk"))
    return layout


def arguments(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of the least config with other entries; those inside others are named with a dot."""
    config: dict[str, Any] = dict(CONFIGS[name][1])
    for entry, value in changes.items():
        outer, _, inner = entry.partition(".")
        config[outer] = {**config.get(outer, {}), inner: value} if inner else value
    return layout_of(name).arguments(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_least_config_is_enough_and_an_unknown_entry_too_much(name: str) -> None:
    cls = CONFIGS[name][0]
    with torch.device("meta"):
        cls(**{**arguments(name, {}), **({"merge_size": 2, "vision_heads": 2} if name == "eve1" else {})})
    with pytest.raises(ValueError, match="an_entry_of_tomorrow = 1"):
        arguments(name, {"an_entry_of_tomorrow": 1})


LLAMA_LIKE = ("emu3", "emu3.5", "eve1", "eve2", "eve2 trunk", "chameleon", "orthus")
INSIDE = {"mono-internvl": "llm_config.", "neo": "llm_config.", "neo trunk": "llm_config.", "neo-llm": ""}


@pytest.mark.parametrize("name", [*LLAMA_LIKE, *INSIDE])
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("hidden_act", "gelu"),
        ("layer_types", ["sliding_attention"]),
        ("partial_rotary_factor", 0.5),
        ("model_type", "gemma"),
        ("architectures", ["GemmaForCausalLM"]),
    ],
)
def test_what_a_language_model_does_otherwise_is_refused(name: str, entry: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{entry} (is|names) "):
        arguments(name, {INSIDE.get(name, "") + entry: value})


@pytest.mark.parametrize("name", [*LLAMA_LIKE, *INSIDE])
def test_rotary_bases_are_followed_under_both_names(name: str) -> None:
    inside = INSIDE.get(name, "")
    for changes in ({"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}):
        assert arguments(name, {inside + entry: value for entry, value in changes.items()})["rope_theta"] == 500.0
    assert arguments(name, {})["rope_theta"] == (1e6 if name.startswith("emu3") else 10000.0)


@pytest.mark.parametrize("name", ["emu3", "emu3.5", "eve1", "eve2", "orthus"])
def test_a_tied_head_is_refused_where_there_is_one_of_its_own(name: str) -> None:
    arguments(name, {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match="tie_word_embeddings is True; accepted: False"):
        arguments(name, {"tie_word_embeddings": True})


FOLLOWED: list[tuple[str, str, Any, str, Any]] = [
    ("emu3", "attention_dropout", 0.3, "dropout", 0.3),
    ("emu3.5", "num_attention_heads", 4, "head_dim", 128),
    ("emu3.5", "head_dim", 6, "head_dim", 6),
    ("chameleon", "swin_norm", True, "post_norm", True),
    ("chameleon", "rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("orthus", "swin_norm", True, "post_norm", True),
    ("orthus", "rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("orthus", "mlp_head", {"in_channels": 4, "model_channels": 7, "num_res_blocks": 2, "z_channels": 16}, "head_width", 7),
    ("neo", "llm_config.attention_bias", True, "bias", True),
    ("neo", "llm_config.rope_theta_hw", 20.0, "rope_theta_place", 20.0),
    ("neo", "llm_config.num_hidden_layers", 5, "num_prebuffer_layers", 2),
    ("neo", "llm_config.extra_num_layers", 1, "num_prebuffer_layers", 1),
    ("neo", "llm_config.num_attention_heads", 2, "head_dim", 128),
    ("neo", "llm_config.tie_word_embeddings", True, "tie_embeddings", True),
    ("mar", "img_size", 256, "norm_eps", 1e-6),
    ("mar", "norm_eps", 1e-5, "norm_eps", 1e-5),
    ("mar", "proj_dropout", 0.3, "dropout", 0.3),
    ("var", "vae_kwargs", {"vocab_size": 7, "z_channels": 3}, "code_dim", 3),
    ("var", "quant", {"vocab_size": 7, "Cvae": 3, "beta": 0.5}, "num_codes", 7),
    ("acdit", "block_size", 4, "num_classes", 101),
    ("acdit", "latent_size", 5, "latent_dim", 5),
    ("acdit", "depth", 2, "latent_dim", 16),
    ("llamagen-c2i", "resid_dropout_p", 0.4, "dropout", 0.4),
    ("llamagen-c2i", "ffn_dim_multiplier", 7.0, "mlp_dim", 512),
    ("llamagen-t2i", "cls_token_num", 7, "num_caption_tokens", 120),
]


@pytest.mark.parametrize(("name", "entry", "value", "argument", "wanted"), FOLLOWED)
def test_entries_are_followed(name: str, entry: str, value: Any, argument: str, wanted: Any) -> None:
    assert arguments(name, {entry: value})[argument] == wanted


REFUSED: list[tuple[str, str, Any, str]] = [
    ("emu3", "attention_bias", True, "attention_bias is True"),
    ("eve1", "mlp_bias", True, "mlp_bias is True"),
    ("eve2", "add_moe", False, "add_moe is False"),
    ("eve2", "moe_part", "norm", "moe_part is 'norm'"),
    ("chameleon", "mlp_bias", True, "mlp_bias is True"),
    ("orthus", "attention_bias", True, "attention_bias is True"),
    ("orthus", "mlp_head", {"in_channels": 4, "out_channels": 6}, "mlp_head.out_channels is 6; accepted: 4"),
    ("orthus", "mlp_head", {"z_channels": 5}, "mlp_head.z_channels is 5; accepted: 16"),
    ("mono-internvl", "llm_config", LLAMA, "bias of the llm_config is true"),
    ("mono-internvl", "model_type", "neo_chat", "model_type is 'neo_chat'"),
    ("neo", "model_type", "internvl_chat", "model_type is 'internvl_chat'"),
    ("neo", "vision_config.architectures", ["InternVisionModel"], "vision_config.architectures names"),
    ("neo", "tie_word_embeddings", True, "tie_word_embeddings is True; accepted: False"),
    ("neo", "llm_config.use_sliding_window", True, "sliding_window is 4096"),
    ("neo trunk", "llm_config.rope_scaling", {"rope_type": "linear", "factor": 2.0}, "rope_scaling is"),
    ("mar", "norm_layer", "RMSNorm", "norm_layer = 'RMSNorm'"),
    ("mar", "function", "mar_tiny", "the size is 'mar_tiny'"),
    ("mar", "function", "mar_base", "encoder_embed_dim = 16"),
    ("acdit", "model", "ACDiT-B", "depth = 2"),
    ("acdit", "function", "ACDiT_1B", "the size is 'ACDiT_1B'"),
    ("acdit", "spatial_len", 15, "spatial_len is 15; accepted: squares"),
    ("acdit", "ar_len", 3, "ar_len is 3; accepted: 4"),
    ("llamagen-c2i", "model_type", "t2i", "model_type is 't2i'"),
    ("llamagen-c2i", "cls_token_num", 2, "cls_token_num is 2; accepted: 1"),
    ("llamagen-c2i", "class_dropout_prob", 0.0, "class_dropout_prob is 0"),
    ("llamagen-t2i", "model_type", "c2i", "model_type is 'c2i'"),
]


@pytest.mark.parametrize(("name", "entry", "value", "message"), REFUSED)
def test_entries_are_refused(name: str, entry: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(name, {entry: value})


def test_acdit_by_the_options_of_its_training() -> None:
    args = {"model": "ACDiT-XL", "num_frames": 1, "image_size": 256, "vae_patch_pixels": 8, "patch_size": 2, "vae_latent_size": 4}
    found = layout_of("acdit").arguments({**args, "block_size": 64, "ar_len": 4, "num_classes": 1000, "lr": 1e-4, "use_rope": True})
    assert found["dim"] == 1152 and found["grid"] == (1, 16, 16) and found["latent_dim"] == 16 and found["square_blocks"]
    video = layout_of("acdit").arguments({**args, "num_frames": 4, "dataset": "UCF101", "block_size": 256})
    assert video["grid"] == (4, 16, 16) and not video["square_blocks"] and video["axis_shares"] == (2, 3, 3)
    with pytest.raises(ValueError, match="square_block is True; accepted: False"):
        arguments("acdit", {"temporal_len": 2, "square_block": True})


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [("emu3", "Emu3TextConfig", {"pad_token_id": 0}), ("chameleon", "ChameleonConfig", {}), ("orthus", "ChameleonConfig", {})],
)
def test_all_that_transformers_writes_is_known(name: str, cls: str, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    written = getattr(transformers, cls)(**{**LLAMA, "eos_token_id": 1, "bos_token_id": 2, **options}).to_dict()
    found, wanted = layout_of(name).arguments(written), arguments(name, {"vq_config": {}} if name == "orthus" else {})
    assert {entry: value for entry, value in wanted.items() if found[entry] != value} == {}


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
