"""Entries of published configs of tokenizers: followed, refused by name, or known to change no numbers."""

import json
from typing import Any

import pytest
from diffusers import VQModel
from transformers import ChameleonConfig, JanusConfig

import mmblocks
from mmblocks import Block
from mmblocks.tokenizers.lavit.decoder import LaVITDecoder
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITVQGAN


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


DDCONFIG: dict[str, Any] = {
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
    "double_z": False,
}
TAMING = {"ddconfig": DDCONFIG, "n_embed": 16, "embed_dim": 4}
VQ_MODEL = {
    "codebook_size": 20,
    "token_size": 6,
    "use_l2_norm": True,
    "vit_enc_model_size": "small",
    "vit_dec_model_size": "small",
    "vit_enc_patch_size": 16,
    "vit_dec_patch_size": 16,
    "num_latent_tokens": 4,
}
ONE_STAGE = {**VQ_MODEL, "finetune_decoder": False, "is_legacy": False}
MING = {
    "low_level_encoder": {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 64, "ffn_layer": "swiglu", "out_dim": 8},
    "semantic_decoder": {"in_dim": 8, "patch_size": 16, "embed_dim": 64, "decoder_depth": 2, "ffn_layer": "swiglu"},
    "pixel_decoder": {"patch_size": 8, "decoder_depth": 1, "embed_dim": 64},
}
DUAL_PART = {"n_embed": 30, "embed_dim": 8, "code_shape": [3, 3, 2], "bottleneck_type": "rq", "shared_codebook": True}
DUAL = {
    "layer_recon": 1,
    "layer_sem": 2,
    "layer_shortcut": 0,
    "weight_shortcut": 0.6,
    "vq_pix": DUAL_PART,
    "vq_sem": DUAL_PART,
    "ddconfig": {**_without(DDCONFIG, "z_channels"), "decoder_in_channels": 32},
    "decoder_latent_shape": [4, 4],
    "pretrained_model": "siglip2-so400m-patch14-384",
}
SIMVQ = {"name": "simvq", "args": {"codebook_size": 40}}
TAR = {"bottleneck": {"name": "bottleneck", "args": {"bottleneck_dim": 8, "regularizer": SIMVQ}}}
JANUS = {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}}
EMU2 = {"vision_cfg": {"image_size": 28, "width": 12, "layers": 1, "head_width": 6, "mlp_ratio": 2.0, "n_query": 4}}
CONFIGS: dict[str, tuple[type[Block], str, dict[str, Any]]] = {
    "vqgan": (mmblocks.tokenizers.VQGAN, "taming", TAMING),
    "vqgan-diffusers": (mmblocks.tokenizers.VQGAN, "diffusers", dict(VQModel(block_out_channels=(32,)).config)),
    "chameleon": (mmblocks.tokenizers.ChameleonVQ, "chameleon", TAMING),
    "chameleon-transformers": (mmblocks.tokenizers.ChameleonVQ, "chameleon-transformers", {"model_type": "chameleon_vqgan"}),
    "chameleon-whole": (mmblocks.tokenizers.ChameleonVQ, "chameleon-transformers-whole", ChameleonConfig().to_dict()),
    "llamagen": (mmblocks.tokenizers.LlamaGenVQ, "llamagen", {"model": "VQ-8", "codebook_size": 16}),
    "janus": (mmblocks.tokenizers.LlamaGenVQ, "janus", {"gen_vision_config": JANUS}),
    "janus-transformers": (mmblocks.tokenizers.LlamaGenVQ, "janus-transformers", {"model_type": "janus_vqgan"}),
    "janus-whole": (mmblocks.tokenizers.LlamaGenVQ, "janus-transformers-whole", JanusConfig().to_dict()),
    "ibq": (mmblocks.tokenizers.IBQ, "ibq", TAMING),
    "ibq-flat": (mmblocks.tokenizers.IBQ, "ibq", {**DDCONFIG, "codebook_size": 16, "embed_dim": 4, "model_type": "Emu3p5VisionVQ"}),
    "magvit2": (mmblocks.tokenizers.OpenMAGVIT2, "open_magvit2", {**TAMING, "ddconfig": _without(DDCONFIG, "attn_resolutions")}),
    "var": (mmblocks.tokenizers.VARVQ, "var", {}),
    "titok": (mmblocks.tokenizers.TiTok, "titok", {"model": {"vq_model": VQ_MODEL}}),
    "titok-one-stage": (mmblocks.tokenizers.OneStageTiTok, "titok", {"model": {"vq_model": ONE_STAGE}}),
    "tatitok": (mmblocks.tokenizers.TATiTok, "tatitok", ONE_STAGE),
    "maskgit": (MaskGITVQGAN, "maskgit", {"_class_name": "MaskGitVQGAN"}),
    "mingtok": (mmblocks.tokenizers.MingTok, "mingtok", MING),
    "seed": (mmblocks.tokenizers.SEEDTokenizer, "seed", {"num_query_token": 32}),
    "lavit": (mmblocks.tokenizers.LaVITTokenizer, "lavit", {"width": 1408}),
    "lavit-decoder": (LaVITDecoder, "lavit", {}),
    "tar": (mmblocks.tokenizers.TATok, "tar", TAR),
    "unitok": (mmblocks.tokenizers.UniTok, "unitok", {}),
    "dualtoken": (mmblocks.tokenizers.DualToken, "dualtoken", {"rqvaesiglip": DUAL}),
    "emu2": (mmblocks.tokenizers.Emu2Latents, "emu2", EMU2),
}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The config with one entry that is another, or there at all."""
    first, _, rest = path.partition(".")
    return {**config, first: changed(config.get(first, {}), rest, value) if rest else value}


def read(name: str, *changes: tuple[str, Any]) -> dict[str, Any]:
    cls, layout_name, config = CONFIGS[name]
    (layout,) = (layout for layout in cls.layouts if layout.name == layout_name)
    for change in changes:
        config = changed(config, *change)
    return layout.arguments(json.loads(json.dumps(config)))


REFUSED = [
    *(
        (name, f"ddconfig.{entry}", value)
        for name in ("vqgan", "chameleon", "ibq", "magvit2")
        for entry, value in (
            ("double_z", True),
            ("in_channels", 1),
            ("out_ch", 4),
            ("resamp_with_conv", False),
            ("use_linear_attn", True),
            ("attn_type", "linear"),
            ("attn_type", None),
            ("give_pre_end", True),
            ("tanh_out", True),
            ("attn_heads", 4),
        )
        if (name, value) != ("magvit2", None)
    ),
    *((name, entry, value) for name in ("vqgan", "ibq") for entry, value in (("remap", "used.npy"), ("colorize_nlabels", 3))),
    *(
        ("vqgan-diffusers", entry, value)
        for entry, value in (
            ("_class_name", "AutoencoderKL"),
            ("norm_type", "spatial"),
            ("act_fn", "gelu"),
            ("norm_num_groups", 16),
            ("mid_block_add_attention", False),
            ("in_channels", 1),
            ("out_channels", 1),
            ("up_block_types", ["AttnUpDecoderBlock2D"]),
            ("down_block_types", ["DownBlock2D"]),
        )
    ),
    *(
        (name, f"{part}{entry}", value)
        for name, part in (("chameleon-transformers", ""), ("chameleon-whole", "vq_config."))
        for entry, value in (("double_latent", True), ("in_channels", 1), ("attn_type", None), ("model_type", "janus_vqgan"))
    ),
    ("chameleon-whole", "model_type", "llama"),
    ("chameleon-whole", "architectures", ["LlamaForCausalLM"]),
    ("llamagen", "model", "VQ-32"),
    ("llamagen", "norm_type", "batch"),
    ("llamagen", "resamp_with_conv", False),
    ("llamagen", "in_channels", 1),
    ("llamagen", "ModelArgs.norm_type", "batch"),
    ("janus", "model_type", "llama"),
    ("janus", "gen_vision_config.params.n_embed", 16),
    ("janus", "gen_vision_config.params.image_token_size", 8192),
    ("janus", "gen_vision_config.cls", "VQ-32"),
    *(
        (name, f"{part}{entry}", value)
        for name, part in (("janus-transformers", ""), ("janus-whole", "vq_config."))
        for entry, value in (("double_latent", True), ("out_channels", 1), ("model_type", "chameleon_vqgan"), ("norm_eps", 1.0))
    ),
    ("janus-whole", "model_type", "llama"),
    ("ibq", "cosine_similarity", True),
    ("ibq-flat", "model_type", "Emu3VisionVQ"),
    ("ibq-flat", "out_channels", 4),
    ("ibq-flat", "attn_type", "linear"),
    ("magvit2", "embed_dim", 5),
    ("magvit2", "n_embed", 17),
    ("var", "quant_conv_ks", 1),
    ("var", "using_sa", False),
    ("var", "using_mid_sa", False),
    ("var", "default_qresi_counts", 3),
    ("var", "quant_resi", 0),
    ("titok", "model.vq_model.quantize_mode", "vae"),
    ("titok", "model.vq_model.vit_enc_model_size", "huge"),
    ("titok", "model.vq_model.num_registers", 4),
    ("titok", "dataset.preprocessing.resize_shorter_edge", 300),
    ("titok", "dataset.preprocessing.normalize_mean", [0.5, 0.5, 0.5]),
    ("titok-one-stage", "model.vq_model.quantize_mode", "fsq"),
    ("tatitok", "is_legacy", True),
    ("maskgit", "_class_name", "VQGANModel"),
    ("maskgit", "num_channels", 4),
    ("maskgit", "quantized_embed_dim", 64),
    ("maskgit", "z_channels", 64),
    *((("mingtok", f"{part}.num_heads", 2)) for part in ("low_level_encoder", "semantic_decoder", "pixel_decoder")),
    ("mingtok", "low_level_encoder.mlp_ratio", 2),
    ("mingtok", "low_level_encoder.num_register_tokens", 4),
    ("mingtok", "semantic_decoder.in_dim", 16),
    ("mingtok", "semantic_decoder.patch_size", 8),
    ("mingtok", "pixel_decoder.ffn_layer", "swiglu"),
    ("mingtok", "model_type", "clip"),
    ("seed", "vit_model", "clip_L"),
    ("seed", "recon_s", False),
    ("seed", "blocks_for_image", False),
    ("seed", "layer_norm_eps", 1e-5),
    ("seed", "hidden_act", "relu"),
    *((name, entry, value) for name in ("lavit", "lavit-decoder") for entry, value in (("qkv_bias", False), ("ln_eps", 1e-6))),
    ("tar", "bottleneck.name", "linear"),
    ("tar", "bottleneck.args.regularizer.name", "vq"),
    ("tar", "bottleneck.args.regularizer.args.depth", 2),
    ("unitok", "num_query", 4),
    ("unitok", "patch_size", 8),
    ("unitok", "resize_ratio", 1.5),
    ("unitok", "model", "vitamin_small"),
    ("dualtoken", "rqvaesiglip.hidden_size", 768),
    ("dualtoken", "hidden_size", 768),
    ("dualtoken", "model_type", "siglip"),
    ("dualtoken", "rqvaesiglip.model_type", "siglip"),
    ("dualtoken", "rqvaesiglip.vq_pix.latent_shape", [6, 6, 8]),
    ("dualtoken", "rqvaesiglip.vq_pix.shared_codebook", False),
    ("dualtoken", "rqvaesiglip.ddconfig.double_z", True),
    ("emu2", "model_type", "emu3"),
    ("emu2", "vision_cfg.eva_model_name", "eva-clip-b-16"),
    ("emu2", "vision_cfg.postnorm", False),
    ("emu2", "vision_cfg.qkv_bias", False),
    ("emu2", "vision_cfg.rope", True),
    ("emu2", "vision_cfg.naiveswiglu", True),
    ("emu2", "vision_cfg.subln", True),
    ("emu2", "vision_cfg.global_average_pool", True),
    ("emu2", "vision_cfg.init_value", 0.1),
    ("emu2", "vision_cfg.ls_init_value", 0.1),
]


@pytest.mark.parametrize(("name", "path", "value"), REFUSED, ids=[f"{name}-{path}-{value}" for name, path, value in REFUSED])
def test_what_is_not_followed_is_refused(name, path, value) -> None:
    read(name)
    with pytest.raises(ValueError, match=path.rpartition(".")[2].replace("cls", "model").replace("ch_mult", "")):
        read(name, (path, value))


FOLLOWED = [
    ("chameleon-whole", "vq_config.resolution", 256, {"image_size": 256}),
    ("llamagen", "codebook_l2_norm", False, {"search": "l2"}),
    ("llamagen", "encoder_ch_mult", [1, 2, 4, 4], {"multipliers": (1, 2, 4, 4), "decoder_multipliers": (1, 2, 2, 4)}),
    ("janus-whole", "vq_config.num_embeddings", 32, {"num_codes": 32, "code_dim": 8}),
    ("magvit2", "token_factorization", True, None),
    ("titok", "dataset.preprocessing.crop_size", 512, {"image_size": 512}),
    ("tatitok", "clustering_vq", True, {"clustering": True}),
    ("lavit", "width", 2816, {"dim": 2816, "mlp_dim": int(2816 * 4.3637)}),
    ("lavit", "img_size", 448, {"image_size": (448, 448)}),
    ("lavit-decoder", "img_size", 448, {"num_patches": 1024}),
    ("lavit-decoder", "depth", 2, {"num_layers": 2}),
    ("seed", "img_size", 448, {"image_size": (448, 448)}),
    ("unitok", "img_size", 512, {"image_size": 512}),
    ("var", "v_patch_nums", [1, 2], {"scales": (1, 2)}),
]


@pytest.mark.parametrize(("name", "path", "value", "wanted"), FOLLOWED, ids=[f"{name}-{path}" for name, path, *_ in FOLLOWED])
def test_what_is_followed(name, path, value, wanted) -> None:
    if wanted is None:
        found = read(name, (path, value), ("factorized_bits", [1, 3]))
        assert found["bits"] == (1, 3)
        with pytest.raises(ValueError, match="factorized_bits"):
            read(name, (path, value), ("factorized_bits", [1, 4]))
        return
    found = read(name, (path, value))
    assert {key: found[key] for key in wanted} == wanted and found != read(name)


HARMLESS = [
    *(
        (name, path, value)
        for name in ("vqgan", "chameleon", "ibq", "magvit2")
        for path, value in (
            ("lossconfig.params.disc_weight", 0.8),
            ("learning_rate", 1e-4),
            ("monitor", "val/rec_loss"),
            ("sane_index_shape", True),
            ("beta", 0.5),
            ("use_ema", True),
            ("ddconfig.dropout", 0.1),
        )
    ),
    ("vqgan-diffusers", "sample_size", 64),
    ("chameleon-whole", "vocabulary_map", {"a.b\n": 3}),
    ("chameleon-whole", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("llamagen", "commit_loss_beta", 0.5),
    ("llamagen", "entropy_loss_ratio", 0.1),
    ("janus", "aligner_config", {"cls": "MlpProjector", "params": {"depth": 2}}),
    ("janus", "language_config", {"model_type": "llama", "vocab_size": 102400}),
    ("janus-transformers", "hidden_act", "relu"),
    ("janus-transformers", "num_patches", 64),
    ("ibq", "entropy_temperature", 0.5),
    ("ibq", "l2_normalize", True),
    ("titok", "losses", {"discriminator_start": 3}),
    ("titok", "model.vq_model.commitment_cost", 1.0),
    ("titok", "dataset.preprocessing.random_crop", True),
    ("titok-one-stage", "model.vq_model.clustering_vq", True),
    ("maskgit", "commitment_cost", 1.0),
    ("maskgit", "resolution", 512),
    ("mingtok", "low_level_encoder.fa_enable", False),
    ("mingtok", "pixel_decoder.loss_type", "L2"),
    ("seed", "max_txt_len", 64),
    ("seed", "embed_dim", 64),
    ("lavit", "model_path", "elsewhere"),
    ("tar", "bottleneck.args.regularizer.args.stochastic_temperature", 0.5),
    ("unitok", "vq_beta", 1.0),
    ("unitok", "disc_lr", 1.0),
    ("dualtoken", "rqvaesiglip.checkpointing", True),
    ("emu2", "llama", {"hidden_size": 8}),
    ("emu2", "vision_cfg.v_query", 16),
]


@pytest.mark.parametrize(("name", "path", "value"), HARMLESS, ids=[f"{name}-{path}" for name, path, _ in HARMLESS])
def test_what_changes_no_numbers(name, path, value) -> None:
    assert read(name, (path, value)) == read(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_entry_that_nobody_knows(name) -> None:
    with pytest.raises(ValueError, match="an_entry_of_tomorrow = 1"):
        read(name, ("an_entry_of_tomorrow", 1))


def test_janus_s_arguments_in_their_own_dict() -> None:
    (layout, *_) = mmblocks.tokenizers.LlamaGenVQ.layouts
    arguments = layout.arguments({"ModelArgs": {"ch": 64, "codebook_size": 16}})
    assert (arguments["channels"], arguments["multipliers"], arguments["num_codes"]) == (64, (1, 1, 2, 2, 4), 16)


def test_vae_of_titok_needs_no_codebook() -> None:
    without = _without(ONE_STAGE, "codebook_size", "use_l2_norm")
    (layout,) = mmblocks.tokenizers.OneStageTiTok.layouts
    assert layout.arguments({**without, "quantize_mode": "vae"})["num_codes"] is None
    assert layout.arguments({**ONE_STAGE, "quantize_mode": "vae"})["num_codes"] is None
