"""Published configs of whole models and of trunks: every entry is followed, refused, or known to change no numbers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.models import EVE1, EVE2, Emu3, LlamaGen, LlamaGenT2I
from mmblocks.models.acdit.model import ACDiT
from mmblocks.models.chameleon.model import Chameleon
from mmblocks.models.janus.model import Janus
from mmblocks.models.mar.model import MAR
from mmblocks.models.neo import NEO
from mmblocks.models.orthus import Orthus
from mmblocks.models.var.transformer import VAR
from mmblocks.trunks import RoutedDecoder
from mmblocks.trunks.chameleon import ChameleonTrunk
from mmblocks.trunks.neo.trunk import NEOTrunk

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
ALIGNER = {"projector_type": "mlp_gelu"}
JANUS_CONFIG = {
    "language_config": LLAMA,
    "vision_config": {"params": {}},
    "aligner_config": {"params": ALIGNER},
    "gen_vision_config": {"params": {"image_token_size": 8, "n_embed": 4}},
    "gen_aligner_config": {"params": ALIGNER},
    "gen_head_config": {"params": {"image_token_embed": 16}},
}
WIDTH = {"projection_dim": 16}
JANUS_TRANSFORMERS = {"text_config": LLAMA, "vision_config": WIDTH, "vq_config": {**WIDTH, "image_token_embed_dim": 16}}
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
    "chameleon trunk": (ChameleonTrunk, LLAMA),
    "chameleon": (Chameleon, LLAMA),
    "janus": (Janus, JANUS_CONFIG),
    "janus-transformers": (Janus, JANUS_TRANSFORMERS),
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


LLAMA_LIKE = ("emu3", "emu3.5", "eve1", "eve2", "eve2 trunk", "chameleon", "chameleon trunk", "orthus")
INSIDE = {
    "janus": "language_config.",
    "janus-transformers": "text_config.",
    "mono-internvl": "llm_config.",
    "neo": "llm_config.",
    "neo trunk": "llm_config.",
    "neo-llm": "",
}


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


@pytest.mark.parametrize("name", ["emu3", "emu3.5", "eve1", "eve2", "chameleon", "orthus"])
def test_a_tied_head_is_refused_where_there_is_one_of_its_own(name: str) -> None:
    arguments(name, {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match="tie_word_embeddings is True; accepted: False"):
        arguments(name, {"tie_word_embeddings": True})


TOWER_OF_22 = {"image_size": 336, "patch_size": 16, "dim": 1024, "num_heads": 16, "mlp_dim": 4096, "num_layers": 22}
FOLLOWED: list[tuple[str, str, Any, str, Any]] = [
    ("emu3", "attention_dropout", 0.3, "dropout", 0.3),
    ("emu3.5", "num_attention_heads", 4, "head_dim", 128),
    ("emu3.5", "head_dim", 6, "head_dim", 6),
    ("chameleon", "swin_norm", True, "post_norm", True),
    ("chameleon", "rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("chameleon trunk", "swin_norm", True, "post_norm", True),
    ("janus", "vision_config.params", {"image_size": 32, "select_layer": -3}, "vision", {**TOWER_OF_22, "image_size": 32}),
    ("janus", "vision_config.params", {"dim": 8, "select_layer": 22}, "vision", {**TOWER_OF_22, "dim": 8}),
    ("janus", "aligner_config.params", {"depth": 2}, "aligner_layers", 2),
    ("janus", "gen_aligner_config.params", {"depth": 3}, "code_layers", 3),
    ("janus", "gen_head_config.params", {"image_token_embed": 9}, "head_dim_codes", 9),
    ("janus-transformers", "vision_config.depth", 3, "aligner_layers", 3),
    ("janus-transformers", "vq_config.num_hidden_layers", 3, "code_layers", 3),
    ("janus-transformers", "vq_config.embed_dim", 5, "code_dim", 5),
    ("janus-transformers", "tie_word_embeddings", True, "tie_embeddings", True),
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
    ("chameleon trunk", "mlp_bias", True, "mlp_bias is True"),
    ("chameleon", "qk_layernorm", False, "qk_layernorm is False"),
    ("janus", "vision_config.params", {"model_name": "sam_b"}, "model_name is 'sam_b'"),
    ("janus", "vision_config.params", {"pixel_mean": [0.5]}, "pixel_mean is"),
    ("janus", "aligner_config.params", {"projector_type": "linear"}, "projector_type is 'linear'"),
    ("janus", "aligner_config.params", {"input_dim": 7}, "input_dim is 7"),
    ("janus", "gen_head_config.params", {"image_token_embed": 9, "image_token_size": 7}, "image_token_size is 7"),
    ("janus", "gen_vision_config.cls", "VQ-8", "cls is 'VQ-8'"),
    ("janus", "language_config.tie_word_embeddings", True, "tie_word_embeddings is True"),
    ("janus-transformers", "vision_config.use_qk_norm", True, "use_qk_norm is True"),
    ("janus-transformers", "vision_config.hidden_act", "relu", "hidden_act is 'relu'"),
    ("janus-transformers", "vision_config.layer_norm_eps", 1e-5, "layer_norm_eps is 1e-05"),
    ("janus-transformers", "vision_config.num_image_tokens", 7, "num_image_tokens is 7"),
    ("janus-transformers", "vision_config.projection_dim", 7, "projection_dim is 7"),
    ("janus-transformers", "vq_config.image_token_embed_dim", 7, "image_token_embed_dim is 7"),
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
    [
        ("emu3", "Emu3TextConfig", {"pad_token_id": 0}),
        *((name, "ChameleonConfig", {}) for name in ("chameleon", "chameleon trunk", "orthus")),
    ],
)
def test_all_that_transformers_writes_is_known(name: str, cls: str, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    written = getattr(transformers, cls)(**{**LLAMA, "eos_token_id": 1, "bos_token_id": 2, **options}).to_dict()
    found, wanted = layout_of(name).arguments(written), arguments(name, {"vq_config": {}} if name == "orthus" else {})
    assert {entry: value for entry, value in wanted.items() if found[entry] != value} == {}
