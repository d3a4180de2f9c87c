"""The small variational autoencoder that the examples with continuous latents share: a digit is 7 x 7 of them."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import mmblocks as mm
from mmblocks.sequence.positions import time_height_width
from mmblocks.tokenizers.conv_vq import StridedDecoder, StridedEncoder

from digits import Digits, augment
from fit import DEVICE, fit

SIZE, CHANNELS = (7, 7), 4
KL_WEIGHT = 5e-5
PLACES = {"rope_sections": (4, 6, 6), "rope_theta": 4.0, "positions": time_height_width}
"""How a decoder counts: by step, row and column. On 7 x 7 places slow rotations could not tell columns apart."""


def vary(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A very light augmentation: what a model learns to draw should still look as people write."""
    return augment(pixels, generator, degrees=3, stretch=0.03, shift=0.5)


def train_autoencoder(
    train: Digits, generator: torch.Generator, num_steps: int = 600
) -> tuple[mm.tokenizers.VisualTokenizer, list[float]]:
    """Reconstruction, with a little of the divergence that keeps the latents near a normal distribution."""
    vae = mm.tokenizers.VisualTokenizer(
        encoder=StridedEncoder(channels=(32, 64), code_dim=2 * CHANNELS),
        bottleneck=mm.tokenizers.bottlenecks.DiagonalGaussian(),
        decoder=StridedDecoder(channels=(32, 64), code_dim=CHANNELS),
        downsampling=(4, 4),
    ).to(DEVICE)

    def next_loss(step: int) -> Tensor:
        pixels = vary(train.pixels[torch.randint(len(train.labels), (32,), generator=generator)], generator).to(DEVICE)
        latents = vae.encode(pixels)
        return mse_loss(vae.decode(latents), pixels) + KL_WEIGHT * latents.loss["kl"]

    return vae, fit(vae, next_loss, num_steps, lr=2e-3, weight_decay=0.0, what="autoencoder")


@torch.no_grad()
def latents_of(vae: mm.tokenizers.VisualTokenizer, pixels: Tensor) -> Tensor:
    """(N, 3, 28, 28) -> (N, 7, 7, 4), the means."""
    return vae.encode(pixels.to(DEVICE)).z.cpu()


@torch.no_grad()
def pixels_of(vae: mm.tokenizers.VisualTokenizer, latents: Tensor) -> Tensor:
    """(N, 7, 7, 4) -> (N, 3, 28, 28)."""
    return vae.decode(mm.Latents(z=latents.to(DEVICE))).cpu()


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return round(-10 * float(mse_loss(made, true).log10()), 2)
