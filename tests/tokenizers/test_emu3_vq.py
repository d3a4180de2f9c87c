import json

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmblocks import Block
from mmblocks.layers.images.pixels import normalise
from mmblocks.tokenizers.conv.stripes import set_memory_budget
from mmblocks.tokenizers.emu3 import autoencoder as emu3_autoencoder
from mmblocks.tokenizers.emu3.tokenizer import Emu3VQ

CONFIG = {
    "num_codes": 64,
    "code_dim": 4,
    "channels": 32,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_levels": (1,),
    "temporal_factor": 4,
}


def tokenizer(**arguments) -> Emu3VQ:
    """With codes and batch statistics of the features' scale, so that many codes are used and time shows."""
    torch.manual_seed(0)
    made = Emu3VQ(**CONFIG | arguments)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        features = made.eval().features(torch.rand(1, 3, 8, 8)).flatten(0, -2)
        made.bottleneck.codes.normal_().mul_(features.std(dim=0)).add_(features.mean(dim=0))
    return made


@pytest.mark.parametrize(("size", "grid"), [((6, 10), (3, 5)), ((4, 6, 10), (1, 3, 5)), ((8, 4, 6), (2, 2, 3))])
def test_images_and_clips(size, grid) -> None:
    vq = tokenizer()
    pixels = torch.rand(2, 3, *size)
    latents = vq.encode(pixels)
    assert latents.ids.shape == (2, *grid) and latents.loss is None and len(latents.ids.unique()) > 3
    decoded = vq.decode(latents.ids)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(vq.decode(latents), decoded, atol=1e-5, rtol=1e-4)
    assert torch.equal(vq.encode(pixels[:1]).ids, latents.ids[:1])


def test_an_image_is_a_clip_that_stands_still() -> None:
    vq = tokenizer()
    image = torch.rand(1, 3, 8, 8)
    ids = vq.encode(image).ids
    assert torch.equal(vq.encode(image[:, :, None].expand(-1, -1, 4, -1, -1)).ids[:, 0], ids)
    torch.testing.assert_close(vq.decode(ids[:, None])[:, :, 0], vq.decode(ids), atol=1e-6, rtol=1e-5)


def test_time_runs_forward_only() -> None:
    vq = tokenizer()
    clip = torch.rand(1, 3, 8, 6, 6)
    changed = clip.clone()
    changed[:, :, 4:] = 1 - changed[:, :, 4:]
    features, others = vq.features(clip), vq.features(changed)
    torch.testing.assert_close(others[:, 0], features[:, 0])
    assert not torch.allclose(others[:, 1], features[:, 1])


@torch.no_grad()
def test_frames_in_pieces_and_in_stripes(monkeypatch) -> None:
    vq = tokenizer()
    clip = torch.rand(1, 3, 8, 6, 10)
    features, decoded = vq.features(clip), vq.decode(vq.encode(clip).ids)
    monkeypatch.setattr(emu3_autoencoder, "FRAME_PIXELS", 3 * 60)
    assert emu3_autoencoder.frames_at_once(6, 10) == 3
    for budget in (None, 5000):
        set_memory_budget(vq, budget)
        torch.testing.assert_close(vq.features(clip), features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vq.decode(vq.encode(clip).ids), decoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (4, 4, 4)])
def test_every_parameter_learns(size) -> None:
    vq = tokenizer().train()
    pixels = torch.rand(2, 3, *size)
    latents = vq.encode(pixels)
    assert set(latents.loss) == set(vq.loss_weights)
    loss = (vq.decode(latents) - pixels).square().mean() + sum(vq.loss_weights[name] * term for name, term in latents.loss.items())
    loss.backward()
    silent = [name for name, parameter in vq.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not silent


def test_half_precision() -> None:
    vq = tokenizer().bfloat16()
    latents = vq.encode(torch.rand(1, 3, 4, 6).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and vq.decode(latents).isfinite().all()


def test_saved_and_loaded(tmp_path) -> None:
    vq = tokenizer()
    vq.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 4, 6)
    assert again.config == vq.config and torch.equal(again.decode(again.encode(pixels)), vq.decode(vq.encode(pixels)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 6, 4, 4), ValueError, "hold 6 frames; accepted: multiples of 4, such as 8"),
        (torch.zeros(1, 3, 0, 4, 4), ValueError, "hold 0 frames; accepted: multiples of 4, such as 4"),
        (torch.zeros(1, 3, 4, 5, 4), ValueError, "pixels are 5x4; accepted: multiples of 2x2, such as 4x4"),
        (torch.zeros(1, 3, 4, 7), ValueError, "pixels are 4x7; accepted: multiples of 2x2, such as 4x8"),
        (torch.zeros(3, 4, 4), ValueError, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, r"accepted: \[0, 1\]"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        tokenizer().encode(pixels)


def test_ids_and_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"accepted: \[0, 63\]"):
        tokenizer().decode(torch.tensor([[[64]]]))
    with pytest.raises(ValueError, match=r"ids have shape \(1, 1\); accepted: \(B, h, w\) or \(B, t, h, w\)"):
        tokenizer().decode(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="temporal_factor is 3; accepted: a power of two"):
        tokenizer(temporal_factor=3)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((640, 512), (640, 512)), ((100, 40), (816, 328)), ((3000, 3000), (1024, 1024)), ((2999, 1001), (1768, 584))],
)
def test_preprocess(size, wanted) -> None:
    """(width, height); 8 pixels a token, as published."""
    with torch.device("meta"):
        vq = Emu3VQ()
    assert vq.preprocess(PILImage.new("RGB", size)).shape == (3, *wanted[::-1])


def test_preprocess_refuses() -> None:
    with pytest.raises(ValueError, match="image is 4x61; accepted: sides of at least 2, the longer at most 5 times the shorter"):
        tokenizer().preprocess(PILImage.new("L", (61, 4)))


@pytest.fixture(scope="module")
def port() -> torch.nn.Module:
    """transformers' port, with weights of its own."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.Emu3VQVAEConfig(
        codebook_size=64,
        base_channels=32,
        channel_multiplier=[2, 1],
        num_res_blocks=1,
        attn_resolutions=[1],
        hidden_size=32,
    )
    return transformers.Emu3VQVAE(config).eval()


@pytest.fixture(scope="module")
def ported(port, tmp_path_factory) -> Emu3VQ:
    folder = tmp_path_factory.mktemp("port")
    port.save_pretrained(folder)
    return Emu3VQ.from_pretrained(folder)


@pytest.mark.parametrize("size", [(6, 10), (4, 4, 6), (8, 4, 6)])
@torch.no_grad()
def test_equals_the_port_in_transformers(port, ported, size) -> None:
    pixels = torch.rand(2, 3, *size)
    swapped = time_and_colour_swapped(pixels * 2 - 1)
    theirs = torch.stack(port.encode(swapped, torch.tensor([size[-2:]] * 2)).image_tokens)
    ids = ported.encode(pixels).ids
    assert torch.equal(ids, theirs) and len(ids.unique()) > 1
    decoded = time_and_colour_swapped(ported.decoder(ported.lookup(ids)))
    torch.testing.assert_close(decoded, port.decode(theirs), atol=1e-4, rtol=1e-4)


def test_inside_transformers_emu3(port, tmp_path) -> None:
    """The names of version 5 and of 4, beside a language model's tensors, with a config that leaves out defaults."""
    from safetensors.torch import save_file

    sizes = {
        "codebook_size": 64,
        "base_channels": 32,
        "channel_multiplier": [2, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
    }
    for layout, prefix, other in (
        ("emu3-transformers-composite", "model.vqmodel.", "model.text_model.norm.weight"),
        ("emu3-transformers-4", "vqmodel.", "text_model.model.norm.weight"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3", "vq_config": sizes}))
        tensors = {prefix + name: tensor for name, tensor in port.state_dict().items()}
        save_file({**tensors, other: torch.ones(1)}, tmp_path / "model.safetensors")
        state = Emu3VQ.from_pretrained(tmp_path, layout=layout).state_dict()
        assert torch.equal(state["bottleneck.codes"], tensors[prefix + "quantize.embedding.weight"])


def test_configs_there_and_back() -> None:
    vq = tokenizer()
    for layout in Emu3VQ.layouts:
        assert {**vq.config, **layout.arguments(layout.published_config(vq.config))} == vq.config
    published = Emu3VQ.layouts[0].published_config(vq.config)
    for change, message in (
        ({"z_channels": 8}, "accepted: 4"),
        ({"double_z": True}, "accepted: False"),
        ({"in_channels": 1}, "3"),
        ({"out_channels": 1}, "3"),
        ({"model_type": "emu3_vqgan"}, "accepted: Emu3VisionVQ"),
    ):
        with pytest.raises(ValueError, match=message):
            Emu3VQ.layouts[0].arguments({**published, **change})


@pytest.mark.parametrize(
    "change", [{"double_latent": True}, {"num_attention_heads": 2}, {"hidden_size": 128}, {"latent_channels": 8}, {"resolution": 8}]
)
def test_entries_of_transformers_config_that_are_not_followed(change) -> None:
    alone, composite = Emu3VQ.layouts[1:3]
    published = alone.published_config(tokenizer().config)
    with pytest.raises(ValueError, match=next(iter(change))):
        alone.arguments({**published, **change})
    with pytest.raises(ValueError, match=next(iter(change))):
        composite.arguments({"model_type": "emu3", "vq_config": {**published, **change}, "text_config": {"hidden_size": 8}})


@pytest.mark.parametrize("layout", [layout.name for layout in Emu3VQ.layouts])
def test_upstream_s_folder_loads_again(tmp_path, layout) -> None:
    vq = tokenizer(min_pixels=64, max_pixels=900, size_step=4, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    vq.to_upstream(tmp_path, layout=layout)
    loaded = Emu3VQ.from_pretrained(tmp_path)
    assert loaded.config == vq.config and loaded.origin.layout == layout
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in vq.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_pixels": 64, "max_pixels": 2000, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.4, 0.3]},
        {"min_pixels": 64, "max_pixels": 900, "spatial_factor": 2, "do_normalize": False},
        {"min_pixels": 5000, "max_pixels": 9000, "rescale_factor": 1 / 100, "do_pad": False},
    ],
)
def test_transformers_image_processor_is_followed(port, tmp_path, options) -> None:
    transformers = pytest.importorskip("transformers")
    port.save_pretrained(tmp_path)
    processor = transformers.Emu3ImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    vq = Emu3VQ.from_pretrained(tmp_path)
    image = PILImage.effect_noise((50, 37), 60).convert("RGB")
    theirs = processor(image, return_tensors="pt")["pixel_values"].flatten(0, -4)
    pixels = vq.preprocess(image)[None]
    torch.testing.assert_close(normalise(pixels, vq.mean, vq.std), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"do_resize": False}, {"resample": 2}, {"image_area": 5}, {"image_processor_type": "ViTImageProcessor"}]
)
def test_image_processors_that_are_not_followed(port, tmp_path, change) -> None:
    port.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 8, **change}))
    with pytest.raises(ValueError, match=f"preprocessor_config.json.*{next(iter(change))}"):
        Emu3VQ.from_pretrained(tmp_path)


@torch.no_grad()
def test_what_is_written_is_read_by_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    vq = tokenizer(min_pixels=64, max_pixels=900, mean=(0.4, 0.5, 0.6))
    vq.to_upstream(tmp_path, layout="emu3-transformers")
    port = transformers.Emu3VQVAE.from_pretrained(tmp_path).eval()
    processor = transformers.Emu3ImageProcessor.from_pretrained(tmp_path)
    noise = torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = PILImage.fromarray(noise.numpy())
    pixels = processor(image, return_tensors="pt")
    theirs = port.encode(pixels["pixel_values"].flatten(0, -4), pixels["image_sizes"].view(-1, 2)).image_tokens[0]
    ours = vq.preprocess(image)[None]
    assert torch.equal(normalise(ours, vq.mean, vq.std), pixels["pixel_values"].flatten(0, -4))
    assert (vq.encode(ours).ids[0] != theirs).double().mean() < 0.02  # where two codes are equally far


def time_and_colour_swapped(pixels: Tensor) -> Tensor:
    return pixels.transpose(1, 2) if pixels.ndim == 5 else pixels
