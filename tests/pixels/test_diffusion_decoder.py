"""Embeddings to pixels by diffusion in an autoencoder's latents; the numbers are compared in tests/parity."""

from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from mmblocks.layers import DiffusersSampler
from mmblocks.pixels import ConditionalUNet, DiffusionDecoder
from mmblocks.pixels.diffusion_decoder import EMU2_SCHEDULE
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers import ConvDecoder, ConvEncoder, DiffusersAutoencoder, VisualTokenizer
from mmblocks.tokenizers.bottlenecks import DiagonalGaussian

UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "attention_head_dim": 2,
    "block_out_channels": [4, 8],
    "cross_attention_dim": 6,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "projection_class_embeddings_input_dim": 6 + 6 * 4,
}
AUTOENCODER = {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "scaling_factor": 0.13,
}


@pytest.fixture
def decoder() -> DiffusionDecoder:
    torch.manual_seed(0)
    return DiffusionDecoder(
        unet=ConditionalUNet(arguments=UNET),
        autoencoder=DiffusersAutoencoder(kind="AutoencoderKL", arguments=AUTOENCODER),
        sampler=DiffusersSampler(scheduler="EulerDiscreteScheduler", options=EMU2_SCHEDULE, num_steps=2),
    ).eval()


def embeddings(batch: int = 1, count: int = 3) -> Tensor:
    return torch.randn(batch, count, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_images_of_a_size_that_is_not_square(decoder, batch) -> None:
    drawn = decoder(embeddings(batch), torch.zeros(batch, 3, 6), size=(8, 12), generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (batch, 3, 8, 12) and drawn.min() >= 0 and drawn.max() <= 1
    again = decoder(embeddings(batch), torch.zeros(batch, 3, 6), size=(8, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_both_streams_at_once_are_both_streams_one_by_one(decoder) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    together = decoder(embeddings(), torch.ones(1, 3, 6), size=(8, 8), noise=noise)
    # Two conditions that are alike attend and average as one does, but differ in number from the three.
    apart = decoder(embeddings(), torch.ones(1, 2, 6), size=(8, 8), noise=noise)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_guidance_of_one_is_the_condition_alone(decoder) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    alone = decoder(embeddings(), size=(8, 8), guidance=1.0, noise=noise)
    assert torch.equal(alone, decoder(embeddings(), torch.ones(1, 3, 6), size=(8, 8), guidance=1.0, noise=noise))
    assert not torch.equal(alone, decoder(embeddings(), torch.ones(1, 3, 6), size=(8, 8), guidance=4.0, noise=noise))


def test_saved_and_loaded(decoder, tmp_path) -> None:
    decoder.save_pretrained(tmp_path)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    asked = {"size": (8, 8), "guidance": 1.0, "noise": noise}
    assert torch.equal(DiffusionDecoder.from_pretrained(tmp_path)(embeddings(), **asked), decoder(embeddings(), **asked))


def conv_autoencoder() -> VisualTokenizer:
    """Of the library's own parts: it takes ``Latents``, and bare tensors for ids."""
    torch.manual_seed(4)
    sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1}
    return VisualTokenizer(
        encoder=ConvEncoder(**sizes, code_dim=8),
        bottleneck=DiagonalGaussian(),
        decoder=ConvDecoder(**sizes, code_dim=4),
        downsampling=(2, 2),
    )


def test_the_librarys_own_autoencoder_serves_as_well(decoder) -> None:
    parts = {"unet": decoder.unet, "sampler": decoder.sampler}
    other, vae = DiffusionDecoder(**parts, autoencoder=conv_autoencoder()).eval(), conv_autoencoder().eval()
    noise = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    asked = {"size": (8, 12), "guidance": 1.0, "noise": noise}
    with torch.no_grad():
        latents = other.latents(embeddings(), None, generator=None, **asked)
        assert torch.equal(other(embeddings(), **asked), vae.decode(Latents(z=latents.movedim(1, -1))))
        pixels = torch.rand(1, 3, 8, 12)
        assert torch.equal(other.latents_of(pixels), vae.encode(pixels).z.movedim(-1, 1))
    assert other.loss(embeddings(), pixels).shape == (1,)


def test_loss_is_that_of_the_noise(decoder) -> None:
    conditions, pixels = embeddings(2).requires_grad_(), torch.rand(2, 3, 8, 12)
    t, noise = torch.tensor([900, 0]), torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        latents = decoder.autoencoder.encode(pixels).z.movedim(-1, 1)
    steps = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sizes = torch.tensor([[8, 12, 0, 0, 8, 12]] * 2)
    predicted = decoder.unet(steps.add_noise(latents, noise, t), t, conditions, sizes)
    found = decoder.loss(conditions, pixels, t=t, noise=noise)
    torch.testing.assert_close(found, (predicted - noise).square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, decoder.loss(conditions, Latents(z=latents.movedim(1, -1)), t=t, noise=noise))
    found.sum().backward()
    assert bool(conditions.grad.abs().sum() > 0) and decoder.unet.model.conv_in.weight.grad is not None


def test_conditions_that_are_not_real_change_nothing(decoder) -> None:
    pixels, t, noise = torch.rand(1, 3, 8, 8), torch.tensor([300]), torch.zeros(1, 4, 4, 4)
    real = torch.tensor([[True, False, True]])
    found = decoder.loss(embeddings(), pixels, real=real, t=t, noise=noise)
    torch.testing.assert_close(found, decoder.loss(embeddings()[:, [0, 2]], pixels, t=t, noise=noise))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (8, 9)}, r"size is \(8, 9\); accepted: multiples of \(2, 2\), such as \(8, 8\)"),
        ({"guidance": 0.5}, "guidance"),
        ({"unconditional": None}, "unconditional is None"),
        ({"conditions": torch.zeros(1, 3, 5), "unconditional": torch.zeros(1, 3, 5)}, "conditions has shape"),
        ({"noise": torch.zeros(1, 4, 3, 3)}, "noise has shape"),
    ],
)
def test_what_does_not_fit_is_named(decoder, changes, message) -> None:
    arguments = {"conditions": embeddings(), "unconditional": embeddings(), "size": (8, 8), **changes}
    with pytest.raises(ValueError, match=message):
        decoder(**arguments)


def test_only_schedulers_are_asked_of_diffusers() -> None:
    with pytest.raises(ValueError, match="scheduler is 'DiffusionPipeline'; accepted: the name of a scheduler"):
        DiffusersSampler(scheduler="DiffusionPipeline").times(None)
    with pytest.raises(ValueError, match="unknown 'width'"):
        ConditionalUNet(arguments={"width": 3})


@pytest.mark.parametrize("layout", ["diffusers", "emu2-gen"])
def test_round_trip(tmp_path: Path, layout: str) -> None:
    unet = ConditionalUNet(arguments=UNET)
    unet.to_upstream(tmp_path, layout=layout)
    again = ConditionalUNet.from_pretrained(tmp_path, layout=layout)
    assert again.config == unet.config
    torch.testing.assert_close(again.state_dict(), unet.state_dict(), rtol=0, atol=0)
    if layout == "diffusers":
        theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
        torch.testing.assert_close(theirs.state_dict(), unet.model.state_dict(), rtol=0, atol=0)


def test_entries_of_published_configs() -> None:
    for layout in ConditionalUNet.layouts:
        notes = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.21.2", "decay": 0.9, "use_ema_warmup": False}
        assert layout.arguments({**UNET, **notes}) == {"arguments": UNET}
        with pytest.raises(ValueError, match="_class_name is 'AutoencoderKL'; accepted: 'UNet2DConditionModel'"):
            layout.arguments({**UNET, "_class_name": "AutoencoderKL"})
        with pytest.raises(ValueError, match="block_channels"):
            layout.arguments({**UNET, "block_channels": [4, 8]})
