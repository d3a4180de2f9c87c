"""Folders that ``to_upstream`` writes: they load again by themselves, as the same tokenizer, in every layout of every class."""

from collections.abc import Callable

import pytest
import torch

import mmblocks
from mmblocks import Block
from mmblocks.public import all_names, find
from mmblocks.tokenizers.lavit.decoder import LaVITDecoder
from mmblocks.tokenizers.titok.first_stage import FirstStageTiTok
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITVQGAN

NETWORK = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1}
VQ = {**NETWORK, "latent_channels": 8, "code_dim": 4, "num_codes": 16}
LEGACY = {
    "num_tokens": 4,
    "code_dim": 6,
    "num_codes": 20,
    "metric": "l2",
    "image_size": 16,
    "patch_size": 4,
    "decoder_patch_size": 8,
    "encoder_size": (32, 1, 2),
    "decoder_size": (32, 1, 4),
    "num_pixel_codes": 12,
}
ONE_STAGE = {name: value for name, value in LEGACY.items() if name != "num_pixel_codes"}
PIXELS = {"pixel_code_dim": 8, "pixel_channels": 32, "pixel_multipliers": (1, 1), "pixel_blocks": 1}
TOWER = {"image_size": (28, 28), "patch_size": 14}
SIGLIP = {"image_size": 30, "patch_size": 10, "dim": 32, "num_layers": 3, "num_heads": 2, "mlp_dim": 32}

BUILDERS: dict[str, Callable[[], Block]] = {
    "VQGAN": lambda: mmblocks.tokenizers.VQGAN(**VQ, attention_levels=(0,)),
    "VQGAN of diffusers": lambda: mmblocks.tokenizers.VQGAN(**VQ, attention_levels=(1,), deepest_first=True),
    "VQGAN without a decoder": lambda: mmblocks.tokenizers.VQGAN(**VQ, attention_levels=(), has_decoder=False),
    "ChameleonVQ": lambda: mmblocks.tokenizers.ChameleonVQ(
        **VQ, attention_levels=(1,), image_size=32, mean=(0.4,) * 3, std=(0.3, 0.4, 0.5)
    ),
    "ChameleonVQ without a decoder": lambda: mmblocks.tokenizers.ChameleonVQ(
        **VQ, image_size=32, has_decoder=False, std=(0.3, 0.4, 0.5)
    ),
    "LlamaGenVQ": lambda: mmblocks.tokenizers.LlamaGenVQ(**VQ, search="l2", image_size=32, entropy_temperature=0.02),
    "LlamaGenVQ with another decoder": lambda: mmblocks.tokenizers.LlamaGenVQ(**VQ, decoder_multipliers=(2, 1)),
    "LlamaGenVQ as transformers'": lambda: mmblocks.tokenizers.LlamaGenVQ(**VQ, search="l2-as-transformers"),
    "IBQ": lambda: mmblocks.tokenizers.IBQ(**VQ, attention_levels=(1,), image_area=400, entropy_temperature=0.02),
    "OpenMAGVIT2": lambda: mmblocks.tokenizers.OpenMAGVIT2(**NETWORK, bits=(2, 3)),
    "OpenMAGVIT2 in one": lambda: mmblocks.tokenizers.OpenMAGVIT2(**NETWORK, bits=(5,)),
    "OpenMAGVIT2Video": lambda: mmblocks.tokenizers.OpenMAGVIT2Video(**NETWORK, bits=(5,), temporal_levels=(0,)),
    "VARVQ": lambda: mmblocks.tokenizers.VARVQ(
        **NETWORK, num_codes=30, code_dim=8, scales=(1, 2, (4, 3)), blend=0.25, metric="cosine"
    ),
    "VARVQ with one blend": lambda: mmblocks.tokenizers.VARVQ(**NETWORK, num_codes=30, code_dim=8, scales=(1, 2), num_blends=1),
    "VARVQ with all blends": lambda: mmblocks.tokenizers.VARVQ(**NETWORK, num_codes=30, code_dim=8, scales=(1, 2), num_blends=0),
    "TiTok": lambda: mmblocks.tokenizers.TiTok(**LEGACY, **PIXELS),
    "FirstStageTiTok": lambda: FirstStageTiTok(**LEGACY),
    "OneStageTiTok": lambda: mmblocks.tokenizers.OneStageTiTok(**ONE_STAGE),
    "OneStageTiTok with a Gaussian": lambda: mmblocks.tokenizers.OneStageTiTok(**ONE_STAGE | {"num_codes": None}),
    "TATiTok": lambda: mmblocks.tokenizers.TATiTok(**ONE_STAGE, clustering=True, text_dim=8, text_length=5),
    "MaskGITVQGAN": lambda: MaskGITVQGAN(**NETWORK, code_dim=8, num_codes=16),
    "MingTok": lambda: mmblocks.tokenizers.MingTok(
        image_size=32,
        patch_size=16,
        latent_dim=8,
        encoder_size=(64, 1),
        semantic_size=(128, 2),
        pixel_size=(64, 1),
        pixel_patch_size=8,
        latent_mean=0.5,
        latent_std=2.0,
    ),
    "SEEDTokenizer": lambda: mmblocks.tokenizers.SEEDTokenizer(
        image_size=(28, 42),
        encoder_dim=16,
        num_codes=20,
        code_dim=4,
        num_queries=3,
        dim=24,
        num_layers=2,
        num_heads=2,
        mlp_dim=32,
        decoder_layers=1,
        decoder_heads=2,
        embed_dim=8,
        head="qformer",
    ),
    "LaVITTokenizer": lambda: mmblocks.tokenizers.LaVITTokenizer(
        **TOWER, dim=16, num_codes=20, code_dim=4, num_layers=1, num_heads=2, mlp_dim=20, keep_rate=0.5, llm_dim=8
    ),
    "LaVITDecoder": lambda: LaVITDecoder(code_dim=4, dim=16, num_patches=6, num_layers=1, num_heads=2, mlp_dim=20),
    "TATok": lambda: mmblocks.tokenizers.TATok(
        **SIGLIP,
        num_codes=40,
        code_dim=8,
        state=-3,
        pool_scale=2,
        decoder_layers=1,
        decoder_heads=2,
        decoder_mlp_dim=32,
        decoder_positions=4,
        metric="cosine",
        temperature=0.5,
    ),
    "UniTok": lambda: mmblocks.tokenizers.UniTok(
        num_codebooks=2,
        num_codes=12,
        code_dim=4,
        entropy_temperature=0.5,
        dim=16,
        widths=(32, 32),
        depths=(1, 1),
        decoder_depths=(1, 1),
        num_layers=1,
        num_heads=2,
        text_dim=8,
        image_size=32,
    ),
    "DualToken": lambda: mmblocks.tokenizers.DualToken(
        **SIGLIP,
        num_codes=30,
        code_dim=8,
        depth=2,
        bottleneck_types=("rq_ema", "rq"),
        decays=(0.9, 0.8),
        restart_unused=(False, True),
        pixel_layer=1,
        shortcut_layer=0,
        semantic_layer=2,
        shortcut_weight=0.3,
        channels=32,
        multipliers=(1, 1),
        num_blocks=1,
        attention_levels=(1,),
        latent_channels=32,
        latent_size=(4, 4),
    ),
    "Emu2Latents": lambda: mmblocks.tokenizers.Emu2Latents(**TOWER, num_tokens=4, dim=12, num_layers=1, num_heads=2, mlp_dim=19),
}
NO_PLACE = {
    ("VQGAN", "diffusers"): "accepted: has_decoder and deepest_first True",
    ("VQGAN of diffusers", "taming"): "deepest_first is True; accepted: False",
    ("VQGAN without a decoder", "diffusers"): "accepted: has_decoder and deepest_first True",
    ("ChameleonVQ", "chameleon-transformers"): "has_decoder is True",
    ("ChameleonVQ", "chameleon-transformers-whole"): "has_decoder is True",
    ("ChameleonVQ without a decoder", "chameleon-whole-with-decoder"): "has_decoder is False",
    ("LlamaGenVQ", "janus"): "since a whole Janus's config names VQ-16",
    ("LlamaGenVQ with another decoder", "janus"): "since a whole Janus's config names VQ-16",
    ("LlamaGenVQ as transformers'", "janus"): "since a whole Janus's config names VQ-16",
    ("LlamaGenVQ with another decoder", "janus-transformers"): "decoder_multipliers is",
    ("LlamaGenVQ with another decoder", "janus-transformers-whole"): "decoder_multipliers is",
}
"""What a layout cannot hold, and why it says so."""
OTHER_LAYOUTS = {
    "VARVQ": ("var",),
    "VARVQ with one blend": ("var-one-blend",),
    "VARVQ with all blends": ("var-all-blends",),
}
"""Where a class's layouts differ in the tensors: the ones that fit."""

CASES = [
    (name, layout)
    for name in BUILDERS
    for layout in OTHER_LAYOUTS.get(name, [layout.name for layout in getattr(BUILDERS[name](), "layouts", ())])
]


def built(name: str) -> Block:
    torch.manual_seed(0)
    return BUILDERS[name]().eval()


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_upstream_s_folder_loads_again(tmp_path, name, layout) -> None:
    block = built(name)
    refusal = NO_PLACE.get((name, layout))
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            block.to_upstream(tmp_path / "written", layout=layout)
        return
    block.to_upstream(tmp_path / "written", layout=layout)
    loaded = type(block).from_pretrained(tmp_path / "written")
    assert loaded.config == block.config and loaded.origin.layout == layout
    found, wanted = loaded.state_dict(), block.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_a_whole_janus_names_its_tokenizer() -> None:
    with torch.device("meta"):
        vq = mmblocks.tokenizers.LlamaGenVQ(image_size=384)
    (known,) = (known for known in vq.layouts if known.name == "janus")
    assert known.arguments(known.published_config(vq.config)) == vq.config


def test_every_tokenizer_with_layouts_is_here() -> None:
    elsewhere = {mmblocks.tokenizers.Emu3VQ, mmblocks.tokenizers.DiffusersAutoencoder, mmblocks.tokenizers.FluxAutoencoder}
    covered = {type(BUILDERS[name]()) for name in BUILDERS} | elsewhere
    published = [find(name) for name in all_names()]
    blocks = {cls for cls in published if isinstance(cls, type) and issubclass(cls, Block) and cls.layouts}
    tokenizers = {
        cls for cls in blocks if cls.__module__.startswith("mmblocks.tokenizers.") and ".bottlenecks." not in cls.__module__
    }
    assert len(tokenizers) > 20 and tokenizers <= covered
