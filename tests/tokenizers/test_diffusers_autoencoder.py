import copy
import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblocks import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.scaled_latents import ScaledLatents
from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder
from mmblocks.tokenizers.diffusers_kinds import KINDS

LEVELS = {"block_out_channels": [8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
WAN = {"base_dim": 3, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
STATISTICS = {"latents_mean": [-0.7, 0.3], "latents_std": [2.8, 1.4]}

TINY = {
    "sd": ("AutoencoderKL", {
        "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    }),
    "sd3": ("AutoencoderKL", {
        "block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 6, "use_quant_conv": False,
        "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609, "mid_block_add_attention": False,
    }),
    "playground": ("AutoencoderKL", {
        "block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 2, "scaling_factor": 0.5, **STATISTICS,
    }),
    "dc": ("AutoencoderDC", {
        "latent_channels": 4, "attention_head_dim": 2, "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
        "encoder_block_types": ["ResBlock", "EfficientViTBlock"], "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "encoder_qkv_multiscales": [[], [5]], "decoder_qkv_multiscales": [[], [5]], "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1], "scaling_factor": 0.41407,
    }),
    "taesd": ("AutoencoderTiny", {
        "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8], "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1], "scaling_factor": 2.0, "shift_factor": 0.5,
    }),
    "wan": ("AutoencoderKLWan", WAN | STATISTICS),
    "wan2.2": ("AutoencoderKLWan", WAN | STATISTICS | {
        "base_dim": 4, "decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
        "scale_factor_spatial": 16,
    }),
    "qwen": ("AutoencoderKLQwenImage", WAN | STATISTICS),
    "hunyuan": ("AutoencoderKLHunyuanVideo", LEVELS | {
        "down_block_types": ["HunyuanVideoDownBlock3D"] * 3, "up_block_types": ["HunyuanVideoUpBlock3D"] * 3,
        "spatial_compression_ratio": 4,
    }),
    "cogvideo": ("AutoencoderKLCogVideoX", LEVELS | {
        "down_block_types": ["CogVideoXDownBlock3D"] * 3, "up_block_types": ["CogVideoXUpBlock3D"] * 3,
    }),
    "mochi": ("AutoencoderKLMochi", {
        "encoder_block_out_channels": [32] * 4, "decoder_block_out_channels": [32] * 4, "layers_per_block": [1, 0, 0, 0, 1],
        "latent_channels": 2, **STATISTICS,
    }),
}  # fmt: skip

SIZES = {"wan": (5, 16, 24), "wan2.2": (5, 16, 32), "qwen": (1, 16, 24), "hunyuan": (5, 8, 12), "cogvideo": (9, 8, 4),
         "mochi": (7, 8, 16)}  # fmt: skip
GRIDS = {"wan": (2, 2, 3), "wan2.2": (2, 1, 2), "qwen": (1, 2, 3), "hunyuan": (2, 2, 3), "cogvideo": (3, 2, 1),
         "mochi": (2, 1, 2), "sd3": (8, 12), "playground": (8, 12)}  # fmt: skip


def published(name):
    torch.manual_seed(0)
    kind, arguments = TINY[name]
    return getattr(diffusers, kind)(**arguments).eval()


def tokenizer(name="sd"):
    torch.manual_seed(0)
    kind, arguments = TINY[name]
    return DiffusersAutoencoder(kind=kind, arguments=arguments)


def pixels_for(name, batch=1):
    return torch.rand(batch, 3, *SIZES.get(name, (8, 12)), generator=torch.Generator().manual_seed(1))


def per_channel(values, ndim):
    return torch.tensor(values).view(1, -1, *[1] * (ndim - 2))


def scaled(latent, config):
    """As the pipelines of diffusers have it, for their channels-first latents."""
    if getattr(config, "latents_mean", None) is not None:
        mean, std = (per_channel(values, latent.ndim) for values in (config.latents_mean, config.latents_std))
        return (latent - mean) * getattr(config, "scaling_factor", 1.0) / std
    return (latent - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_same_numbers_as_the_model_a_folder_of_diffusers_holds(name, tmp_path) -> None:
    model = published(name)
    model.save_pretrained(tmp_path)
    vae = DiffusersAutoencoder.from_pretrained(tmp_path)
    pixels = pixels_for(name)
    output = model.encode(pixels * 2 - 1, return_dict=False)[0]
    latent = output if isinstance(output, torch.Tensor) else output.mode()

    latents = vae.encode(pixels)
    wanted = scaled(latent, model.config)
    torch.testing.assert_close(latents.z.movedim(-1, 1), wanted, rtol=1e-5, atol=1e-6)
    assert latents.z.shape[1:-1] == GRIDS.get(name, (4, 6)) and latents.ids is None and latents.loss is None

    decoded = model.decode(latent, return_dict=False)[0]
    torch.testing.assert_close(vae.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert vae.decode(latents.z).shape == pixels.shape
    if isinstance(output, torch.Tensor):
        assert latents.mean is None and latents.logvar is None
        return

    drawn = vae.encode(pixels, generator=torch.Generator().manual_seed(2))
    wanted = scaled(output.sample(torch.Generator().manual_seed(2)), model.config)
    torch.testing.assert_close(drawn.z.movedim(-1, 1), wanted, rtol=1e-5, atol=1e-6)
    noise = torch.randn_like(drawn.z)
    again = vae.encode(pixels, noise=noise)
    torch.testing.assert_close(again.z, again.mean + (again.logvar / 2).exp() * noise, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.mean, latents.z) and not torch.equal(again.z, latents.z)


def test_every_kind_is_tested() -> None:
    assert {kind for kind, _ in TINY.values()} == set(KINDS)


@pytest.mark.parametrize("name", TINY)
def test_saved_in_our_layout_and_back_in_the_published_one(name, tmp_path) -> None:
    model = published(name)
    model.save_pretrained(tmp_path / "theirs")
    vae = DiffusersAutoencoder.from_pretrained(tmp_path / "theirs")
    vae.save_pretrained(tmp_path / "ours")
    again = Block.from_pretrained(tmp_path / "ours")
    assert again.config == vae.config
    layout = vae.layouts[0]
    written = dict(layout.convert(again.state_dict(), again.config, to="theirs"))
    wanted = model.state_dict()
    assert set(written) == set(wanted) and all(torch.equal(written[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("size", "written"), [("5GB", "diffusion_pytorch_model.safetensors"), ("20KB", "{}.index.json")])
def test_diffusers_reads_what_is_written_in_its_layout(tmp_path, size, written) -> None:
    vae = tokenizer().eval()
    vae.to_upstream(tmp_path, max_shard_size=size)
    assert (tmp_path / written.format("diffusion_pytorch_model.safetensors")).is_file()
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    pixels = pixels_for("sd")
    assert torch.equal(model.encode(pixels * 2 - 1).latent_dist.mode() * 0.18215, vae.encode(pixels).z.movedim(-1, 1))


def test_names_of_weights(tmp_path) -> None:
    """Weights of one name replace those of the other, and both names are read."""
    vae = tokenizer().eval()
    for write, name in 2 * [(vae.save_pretrained, "model"), (vae.to_upstream, "diffusion_pytorch_model")]:
        write(tmp_path)
        assert [file.name for file in tmp_path.glob("*.safetensors")] == [f"{name}.safetensors"]
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "model.safetensors")
    again = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in vae.state_dict().items())


def test_shards_and_pipelines(tmp_path) -> None:
    published("sd").save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors.index.json").is_file()
    vae = DiffusersAutoencoder.from_pretrained(tmp_path, subfolder="vae", dtype=torch.bfloat16)
    pixels = pixels_for("sd").bfloat16()
    latents = vae.encode(pixels, sample=True)
    assert latents.z.dtype == torch.bfloat16 and vae.decode(latents).isfinite().all()


def test_files_from_before_attention_was_rewritten(tmp_path) -> None:
    model = published("sd")
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for ours, theirs in old.items():
        tensors = {key.replace(f".{ours}.", f".{theirs}."): value for key, value in tensors.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, file)
    vae = DiffusersAutoencoder.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(vae.model.state_dict()[key], value)


def test_leftovers_in_a_published_config(tmp_path) -> None:
    model = published("taesd")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "block_out_channels" in config
    DiffusersAutoencoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"novelty": 3}))
    with pytest.raises(ValueError, match="does not know: novelty = 3"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
    DiffusersAutoencoder.from_pretrained(tmp_path, ignored_entries=["novelty"])
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "DiffusionPipeline"}))
    with pytest.raises(ValueError, match="'DiffusionPipeline'; accepted: AutoencoderKL, "):
        DiffusersAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["sd", "dc", "wan"])
def test_gradients_reach_every_parameter(name) -> None:
    vae = tokenizer(name).train()
    latents = vae.encode(pixels_for(name, batch=2), sample=name != "dc")
    loss = vae.decode(latents).square().mean() + sum((latents.loss or {}).values())
    loss.backward()
    assert [key for key, value in vae.named_parameters() if value.grad is None] == []


def test_kl_is_that_of_diffusers_and_sides_are_frozen_apart() -> None:
    vae = tokenizer().train()
    pixels = pixels_for("sd", batch=3)
    wanted = vae.model.encode(pixels * 2 - 1).latent_dist.kl().mean()
    torch.testing.assert_close(vae.encode(pixels).loss["kl"], wanted)
    vae.encoder.requires_grad_(False)
    trainable = {key.split(".")[0] for key, value in vae.named_parameters() if value.requires_grad}
    assert trainable == {"decoder"}


def test_a_copy_shares_nothing() -> None:
    vae = tokenizer().eval()
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    assert other.encode(pixels_for("sd")).z.abs().sum() == 0
    assert vae.encode(pixels_for("sd")).z.abs().sum() > 0
    assert other.model is other.decoder.model and other.model is not vae.model


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd", (9, 12), "pixels are 9x12; accepted: sides that are multiples of 2, such as 8x12"),
        ("sd", (0, 2), "such as 2x2"),
        ("wan", (4, 16, 8), r"pixels are 4x16x8; accepted: 1 \+ 4 k frames, and .* multiples of 8, such as 5x16x8"),
        ("wan", (0, 8, 8), "such as 1x8x8"),
        ("cogvideo", (5, 16, 8), r"1 \+ 8 k frames"),
        ("wan", (16, 8), r"accepted: \(B, 3, T, H, W\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, size, message) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(name).encode(torch.zeros(1, 3, *size))


@pytest.mark.unchecked
def test_what_a_continuous_tokenizer_lacks() -> None:
    vae, dc = tokenizer().eval(), tokenizer("dc")
    assert vae.codebook_sizes == ()
    for use in (vae.lookup, vae.decode):
        with pytest.raises(ValueError, match="continuous and have no codes"):
            use(torch.zeros(1, 4, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="no variance"):
        dc.encode(pixels_for("dc"), sample=True)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 4, 4, 6\); accepted: \(1, 4, 6, 4\)"):
        vae.encode(pixels_for("sd"), noise=torch.zeros(1, 4, 4, 6))
    with pytest.raises(ValueError, match="z has shape"):
        vae.decode(Latents(z=torch.zeros(1, 4, 6, 3)))
    with pytest.raises(TypeError, match="uint8"):
        vae.encode(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "AutoencoderKLAllegro", "arguments": {}}, "kind is 'AutoencoderKLAllegro'; accepted: AutoencoderKL, "),
        ({"kind": "AutoencoderKL", "arguments": {"z_dim": 3}}, "unknown 'z_dim'; accepted: in_channels, "),
        ({"kind": "AutoencoderKL", "arguments": {"latents_mean": [0.0] * 4}}, "latents_mean and latents_std together"),
        ({"kind": "AutoencoderKLWan", "arguments": {**WAN}}, "shift holds 16 numbers; accepted: one, or 2"),
        *(
            (
                {"kind": "AutoencoderKL", "arguments": {"scaling_factor": value}},
                f"scaling_factor is {value!r}; .* number other than 0",
            )
            for value in (0.0, 0, float("inf"), "1", True)
        ),
        ({"kind": "AutoencoderKL", "arguments": {"shift_factor": "0"}}, "shift_factor is '0'; accepted: a finite number$"),
        (
            {"kind": "AutoencoderKLWan", "arguments": {**WAN, "latents_mean": [0, 1], "latents_std": [1, 0]}},
            r"latents_std is \[1, 0\]; accepted: a list of finite numbers other than 0",
        ),
        (
            {"kind": "AutoencoderKLWan", "arguments": {**WAN, "latents_mean": 0.0, "latents_std": [1, 1]}},
            r"latents_mean is 0\.0; accepted: a list of finite numbers$",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DiffusersAutoencoder(**arguments)


def test_the_bottleneck_alone() -> None:
    bottleneck = ScaledLatents(dim=2, shift=0.5, scale=(2.0, 4.0)).eval()
    latents = bottleneck(torch.tensor([[[1.0, 1.5, 0.0, 100.0]]]))
    assert torch.equal(latents.z, torch.tensor([[[1.0, 4.0]]])) and torch.equal(latents.z, latents.mean)
    torch.testing.assert_close(latents.logvar, torch.tensor([[[2 * 0.6931472, 20 + 2 * 1.3862944]]]))
    with pytest.raises(ValueError, match="features have width 3; accepted: 4"):
        bottleneck(torch.zeros(1, 1, 3))
    for scale in (0.0, (1.0, 0.0)):
        with pytest.raises(ValueError, match="numbers other than 0"):
            ScaledLatents(dim=2, scale=scale)


def test_a_scale_of_zero_in_a_file_names_the_entry(tmp_path) -> None:
    tokenizer().to_upstream(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"scaling_factor": 0.0}))
    with pytest.raises(ValueError, match=r"scaling_factor is 0\.0; accepted: a finite number other than 0"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
