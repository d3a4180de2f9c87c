import pytest
import torch
from PIL import Image

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck
from mmblocks.tokenizers.towers.dualtoken import DualToken


def tokenizer(**options) -> DualToken:
    torch.manual_seed(0)
    return DualToken(
        num_codes=30, code_dim=8, depth=2, image_size=30, patch_size=10, dim=32, num_layers=3, num_heads=2, mlp_dim=32,
        pixel_layer=1, shortcut_layer=0, semantic_layer=2, channels=32, multipliers=(1, 1), num_blocks=1, attention_levels=(1,),
        latent_channels=32, latent_size=(4, 4), **options,
    )  # fmt: skip


def test_codes_decode_to_what_the_latents_decode_to() -> None:
    dual = tokenizer().eval()
    latents = dual.encode(torch.rand(2, 3, 30, 30))
    assert latents.ids.shape == (2, 3, 3, 4) and dual.codebook_sizes == (30,) * 4
    decoded = dual.decode(latents)
    assert decoded.shape == (2, 3, 8, 8)
    torch.testing.assert_close(dual.decode(latents.ids), decoded, atol=1e-5, rtol=1e-5)
    state, pooled = dual.semantic(latents)
    assert state.shape == (2, 3, 3, 32) and pooled.shape == (2, 32)


def test_pixels_and_meaning_do_not_mix() -> None:
    dual = tokenizer().eval()
    latents = dual.encode(torch.rand(1, 3, 30, 30))
    other = latents._replace(z=latents.z + torch.tensor([0.0] * 8 + [1.0] * 8))
    assert torch.equal(dual.decode(other), dual.decode(latents))
    assert not torch.equal(dual.semantic(other)[1], dual.semantic(latents)[1])


def test_each_kind_comes_from_its_own_layers() -> None:
    dual = tokenizer().eval()
    pixels = torch.rand(1, 3, 30, 30)
    before, pooled = dual.features(pixels), dual.semantic(dual.encode(pixels))[1]
    pixel_same, semantic_same = [], []
    for layer in reversed(dual.encoder.vision.layers):
        torch.nn.init.constant_(layer.mlp.down.bias, 1.0)
        after = dual.features(pixels)
        pixel_same.append(torch.equal(before[..., :8], after[..., :8]))
        semantic_same.append(torch.equal(before[..., 8:], after[..., 8:]))
        if len(pixel_same) == 1:  # the last layer only sees what the codes stand for
            assert not torch.equal(dual.semantic(dual.encode(pixels))[1], pooled)
    assert pixel_same == [True, True, False] and semantic_same == [True, False, False]


def test_attention_behind_the_codes_is_causal() -> None:
    dual = tokenizer().eval()
    z = torch.randn(1, 3, 3, 16)
    changed = z.clone()
    changed[:, 2] += 1
    states = [dual.semantic(dual.encode(torch.zeros(1, 3, 30, 30))._replace(z=vectors))[0] for vectors in (z, changed)]
    assert torch.equal(states[0][:, :2], states[1][:, :2]) and not torch.equal(states[0][:, 2], states[1][:, 2])
    assert dual.decoder.from_pixel.attention.causal


def test_gradients_reach_every_parameter() -> None:
    dual = tokenizer().train()
    latents = dual.encode(torch.rand(2, 3, 30, 30), generator=torch.Generator().manual_seed(0))
    assert set(latents.loss) == set(dual.loss_weights)
    state, pooled = dual.semantic(latents)
    (dual.decode(latents).square().mean() + state.square().mean() + pooled.square().mean() + sum(latents.loss.values())).backward()
    learned = {name: parameter for name, parameter in dual.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in learned.items() if parameter.grad is None] == []
    assert {name for name, _ in dual.named_parameters()} - set(learned) == {
        "bottleneck.pixel.codebooks.0.codes", "bottleneck.semantic.codebooks.0.codes",
    }  # fmt: skip


def test_saved_loaded_and_in_bfloat16(tmp_path) -> None:
    dual = tokenizer().eval()
    dual.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 30, 30)
    assert torch.equal(again.decode(again.encode(pixels)), dual.decode(dual.encode(pixels)))
    half = dual.bfloat16()
    assert half.decode(half.encode(pixels.bfloat16()).ids).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    dual = tokenizer()
    with pytest.raises(ValueError, match="pixels are 30x40; accepted: 30x30 alone"):
        dual.encode(torch.zeros(1, 3, 30, 40))
    with pytest.raises(ValueError, match="accepted: 4, 2 of them for pixels"):
        dual.decode(torch.zeros(1, 3, 3, 2, dtype=torch.long))


def test_preprocess_gives_what_encode_takes() -> None:
    assert tokenizer().preprocess(Image.new("RGB", (90, 50))).shape == (3, 30, 30)


def test_how_codes_learn_is_read_from_the_config() -> None:
    options = {"n_embed": 30, "embed_dim": 8, "code_shape": [3, 3, 2], "shared_codebook": True}
    config = {
        "vq_pix": {**options, "bottleneck_type": "rq", "decay": 0.9, "restart_unused_codes": False},
        "vq_sem": {**options, "bottleneck_type": "rq_ema", "decay": 0.8, "restart_unused_codes": True},
        "pretrained_model": "siglip2-so400m-patch14-384", "layer_recon": 6, "layer_sem": 26, "layer_shortcut": 4,
        "weight_shortcut": 0.6, "decoder_latent_shape": [4, 4],
        "ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 8,
                     "decoder_in_channels": 32},
    }  # fmt: skip
    arguments = DualToken.layouts[0].arguments(config)
    read = {name: arguments[name] for name in ("bottleneck_types", "decays", "restart_unused")}
    assert read == {"bottleneck_types": ("rq", "rq_ema"), "decays": (0.9, 0.8), "restart_unused": (False, True)}
    bottleneck = tokenizer(**read).bottleneck
    assert (type(bottleneck.pixel), type(bottleneck.semantic)) == (RQBottleneck, JointRQBottleneck)
    assert bottleneck.pixel.codebooks[0].decay == 0.9 and not bottleneck.pixel.codebooks[0].restart_unused
    assert bottleneck.semantic.codebooks[0].decay == 0.8 and bottleneck.semantic.codebooks[0].restart_unused
    with pytest.raises(ValueError, match="bottleneck_types hold 'vq'; accepted: rq, rq_ema"):
        tokenizer(bottleneck_types=("rq", "vq"))
