"""The VQGAN family against transformers and diffusers, with the same random weights."""

import json

import pytest
import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import ChameleonImageProcessor, ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmblocks.layers.images.pixels import normalise
from mmblocks.tokenizers import IBQ, VQGAN, ChameleonVQ, LlamaGenVQ
from mmblocks.tokenizers.conv.blocks import channels_first

SMALL = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "latent_channels": 8, "code_dim": 4, "num_codes": 16}
KINDS = [VQGAN, ChameleonVQ, LlamaGenVQ, IBQ]


def randomised(module: nn.Module) -> nn.Module:
    """Nothing stays at zero or one, where wrong wiring would not show."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@torch.no_grad()
def test_diffusers_vq_model(tmp_path, size) -> None:
    theirs = randomised(
        VQModel(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=8,
            num_vq_embeddings=16,
            vq_embed_dim=4,
        )
    )
    theirs.save_pretrained(tmp_path)
    ours = VQGAN.from_pretrained(tmp_path)

    pixels = torch.rand(2, 3, *size)
    features = theirs.encode(pixels * 2 - 1).latents
    close(channels_first(ours.features(pixels)), features)
    quantized, _, (_, _, ids) = theirs.quantize(features)
    latents = ours.encode(pixels)
    assert torch.equal(latents.ids.flatten(), ids)
    decoded = theirs.decode(features).sample
    close(ours.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))
    close(channels_first(latents.z), quantized)


@torch.no_grad()
def test_transformers_chameleon(tmp_path) -> None:
    config = ChameleonVQVAEConfig(
        embed_dim=4,
        num_embeddings=16,
        latent_channels=8,
        resolution=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[16],
    )
    theirs = randomised(ChameleonVQVAE(config))
    theirs.save_pretrained(tmp_path)
    ours = ChameleonVQ.from_pretrained(tmp_path)

    pixels = torch.rand(2, 3, 16, 24)
    encoded = theirs.encode(pixels * 2 - 1)
    assert torch.equal(ours.encode(pixels).ids.flatten(), encoded.image_tokens.flatten())
    with pytest.raises(ValueError, match="this checkpoint holds no decoder"):
        ours.decode(ours.encode(pixels))


@torch.no_grad()
def test_transformers_janus(tmp_path) -> None:
    config = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=16,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        num_patches=8,
    )
    theirs = randomised(JanusVQVAE(config))
    theirs.save_pretrained(tmp_path)
    ours = LlamaGenVQ.from_pretrained(tmp_path, search="l2-as-transformers")

    pixels = torch.rand(2, 3, 16, 16)
    ids = theirs.encode(pixels * 2 - 1).image_tokens.view(2, 8, 8)
    assert torch.equal(ours.encode(pixels).ids, ids)
    decoded = (theirs.decode(ids.flatten(1)) / 2 + 0.5).clamp(0, 1)
    close(ours.decode(ids), decoded)
    latents = ours.encode(pixels)
    close(ours.decode(latents), decoded)
    close(ours.bottleneck.mix(one_hot(latents.ids, 16).float()), latents.z)
    assert theirs.quantize.embedding.weight.norm(dim=-1).std() > 0.1  # so that length matters


@torch.no_grad()
def test_a_decoder_of_other_widths(tmp_path) -> None:
    tokenizer = randomised(LlamaGenVQ(**SMALL, decoder_multipliers=(2, 3)))
    tokenizer.to_upstream(tmp_path, layout="llamagen")
    sizes = {"ch": 32, "num_res_blocks": 1, "z_channels": 8, "codebook_size": 16, "codebook_embed_dim": 4}
    options = {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(sizes | options))
    loaded = LlamaGenVQ.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 8, 12)
    assert loaded.config == tokenizer.config
    assert torch.equal(loaded.decode(loaded.encode(pixels)), tokenizer.decode(tokenizer.encode(pixels)))
    assert (loaded.encoder.norm_out.num_channels, loaded.decoder.norm_out.num_channels) == (64, 64)
    with pytest.raises(ValueError, match=r"decoder_multipliers is \(1,\); accepted: as many as multipliers, 2"):
        LlamaGenVQ(**SMALL, decoder_multipliers=(1,))


def test_published_janus_searches_by_angle() -> None:
    ours = randomised(LlamaGenVQ(**SMALL))
    features = ours.features(torch.rand(1, 3, 16, 16)).flatten(0, 2)
    angles = nn.functional.cosine_similarity(features[:, None], ours.bottleneck.codes, dim=-1)
    assert torch.equal(ours.bottleneck.nearest(features), angles.argmax(1))
    torch.testing.assert_close(ours.lookup(torch.arange(16)).norm(dim=-1), torch.ones(16))


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_learns(kind) -> None:
    tokenizer = kind(**SMALL).train()
    latents = tokenizer.encode(torch.rand(1, 3, 8, 12))
    loss = tokenizer.decode(latents).square().mean()
    loss = loss + sum(weight * latents.loss[name] for name, weight in tokenizer.loss_weights.items() if name in latents.loss)
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_saved_and_loaded_in_shards(kind, tmp_path) -> None:
    tokenizer = randomised(kind(**SMALL))
    tokenizer.save_pretrained(tmp_path, max_shard_size=50_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = kind.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 8, 20)
    ids = loaded.encode(pixels).ids
    assert ids.shape == (1, 4, 10) and torch.equal(ids, tokenizer.encode(pixels).ids)
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))


@torch.no_grad()
def test_half_precision_searches_in_float32() -> None:
    tokenizer = randomised(VQGAN(**SMALL)).bfloat16()
    features = tokenizer.features(torch.rand(1, 3, 16, 16).bfloat16())
    wanted = torch.cdist(features.flatten(0, 2).double(), tokenizer.bottleneck.codes.double()).argmin(1)
    assert torch.equal(tokenizer.bottleneck(features).ids.flatten(), wanted)


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 9, 16), ValueError, "pixels are 9x16; accepted: multiples of 2x2, such as 8x16"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "divide uint8 by 255"),
        (torch.full((1, 3, 8, 8), 1.5), ValueError, r"pixels lie in \[1.5, 1.5\]"),
        (torch.full((1, 3, 8, 8), torch.nan), ValueError, "pixels lie in"),
        (torch.zeros(1, 4, 8, 8), ValueError, "accepted: "),
    ],
)
@pytest.mark.unchecked
def test_wrong_pixels(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        VQGAN(**SMALL).encode(pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_any_integers_mean_the_same(kind, dtype) -> None:
    tokenizer = kind(**SMALL).eval()
    ids = torch.randint(16, (1, 2, 3))
    assert torch.equal(tokenizer.decode(ids.to(dtype)), tokenizer.decode(ids))


@pytest.mark.unchecked
def test_wrong_ids() -> None:
    tokenizer = VQGAN(**SMALL)
    with pytest.raises(ValueError, match=r"ids lie in \[0, 16\]; accepted: \[0, 15\]"):
        tokenizer.decode(torch.tensor([[[0, 16]]]))
    with pytest.raises(TypeError, match=r"ids: dtype torch\.float32"):
        tokenizer.decode(torch.zeros(1, 2, 2))


def test_nan_never_reaches_the_codebook() -> None:
    tokenizer = VQGAN(**SMALL)
    with pytest.raises(ValueError, match="NaN or infinity; nothing was learned"):
        tokenizer.bottleneck(torch.full((1, 2, 2, 4), torch.nan))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 16, "width": 16},
            "image_mean": [0.9, 1.0, 1.1],
            "image_std": [0.8] * 3,
        },
    ],
)
def test_chameleon_s_image_processor_in_transformers(tmp_path, options) -> None:
    (layout,) = (layout for layout in ChameleonVQ.layouts if layout.name == "chameleon-transformers")
    sizes = {"num_codes": 16, "code_dim": 4, "channels": 32, "multipliers": (1, 2), "num_blocks": 1, "latent_channels": 8}
    vq = ChameleonVQ(**sizes, image_size=32, has_decoder=False)
    vq.to_upstream(tmp_path, layout=layout.name)
    processor = ChameleonImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = ChameleonVQ.from_pretrained(tmp_path)
    side = options.get("crop_size", {}).get("height", 512)
    image = Image.effect_noise((side, side), 60).convert("RGB")
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    pixels = loaded.preprocess(image)[None]
    torch.testing.assert_close(normalise(pixels, loaded.mean, loaded.std), theirs, atol=1e-4, rtol=1e-4)
    for change in (
        {"resample": 3},
        {"do_center_crop": False},
        {"size": {"height": 16, "width": 16}},
        {"crop_size": 24},
        {"do_pad": True},
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
        with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
            ChameleonVQ.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("ours", "layout", "theirs"),
    [
        (
            lambda: ChameleonVQ(**SMALL, attention_levels=(1,), image_size=32, has_decoder=False),
            "chameleon-transformers",
            ChameleonVQVAE,
        ),
        (lambda: LlamaGenVQ(**SMALL, image_size=32), "janus-transformers", JanusVQVAE),
        (lambda: VQGAN(**SMALL, attention_levels=(1,), deepest_first=True), "diffusers", VQModel),
    ],
)
@torch.no_grad()
def test_what_is_written_is_read_by_the_other_library(tmp_path, ours, layout, theirs) -> None:
    block = randomised(ours())
    block.to_upstream(tmp_path, layout=layout)
    model = theirs.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 16, 16)
    projected = model.quant_conv(model.encoder(pixels * 2 - 1))
    close(channels_first(block.features(pixels)), projected)
