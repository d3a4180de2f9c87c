"""The tokenizers of the recipes: of latents, of codes, and of codes at growing scales, all of 7 x 7 places."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import mmblocks as mm
from mmblocks.sequence.segments import Codes, Image, Segment
from mmblocks.tokenizers.conv_vq import StridedDecoder, StridedEncoder

from digits import Digits
from emu3_like import NUM_CODES, train_tokenizer
from fit import DEVICE, fit
from latents import latents_of, pixels_of, train_autoencoder, vary
from recipes.way import CODE_DIM, SCALES


class Tokenizers(NamedTuple):
    """The tokenizers, and the standard deviation of the latents, by which these are divided."""

    vae: mm.tokenizers.VisualTokenizer
    vq: mm.tokenizers.ConvVQ
    scales: mm.tokenizers.VisualTokenizer
    spread: float

    @torch.no_grad()
    def encode(self, images: str, pixels: Tensor) -> Tensor:
        """Pixels to "latents", "codes" or codes of all "scales", or as they are."""
        if images == "pixels":
            return pixels
        if images == "latents":
            return latents_of(self.vae, pixels) / self.spread
        return (self.scales if images == "scales" else self.vq).encode(pixels.to(DEVICE)).ids.cpu()

    @torch.no_grad()
    def decode(self, image: Segment) -> Tensor:
        """What a model has written, as pixels (3, 28, 28)."""
        if isinstance(image, Image):
            return image.pixels.cpu()
        if isinstance(image, Codes):
            return (self.vq if image.grid.ndim == 2 else self.scales).decode(image.grid[None].to(DEVICE))[0].cpu()
        return pixels_of(self.vae, image.values[None] * self.spread)[0]


def train_scales(train: Digits, generator: torch.Generator, num_steps: int) -> tuple[mm.tokenizers.VisualTokenizer, list[float]]:
    """VAR's tokenizer at the size of digits. Codes that are not in use are laid where something is left over at the last scale."""
    quantizer = mm.tokenizers.bottlenecks.MultiScaleQuantizer(num_codes=NUM_CODES, dim=CODE_DIM, scales=SCALES)
    tokenizer = mm.tokenizers.VisualTokenizer(
        encoder=StridedEncoder(channels=(32, 64), code_dim=CODE_DIM),
        bottleneck=quantizer,
        decoder=StridedDecoder(channels=(32, 64), code_dim=CODE_DIM),
        downsampling=(4, 4),
    ).to(DEVICE)
    some = train.pixels[::10].to(DEVICE)

    @torch.no_grad()
    def revive() -> None:
        features = tokenizer.features(some)
        ids = quantizer(features).ids
        left_over = (features - quantizer.cumulative(ids)[-2]).flatten(0, 2)
        unused = (torch.bincount(ids.flatten(), minlength=NUM_CODES) == 0).nonzero()[:, 0]
        quantizer.codes[unused] = left_over[torch.randint(len(left_over), (len(unused),), generator=generator).to(DEVICE)]

    def next_loss(step: int) -> Tensor:
        pixels = vary(train.pixels[torch.randint(len(train.labels), (32,), generator=generator)], generator).to(DEVICE)
        if step < 40:
            return mse_loss(tokenizer.decode(mm.Latents(z=tokenizer.features(pixels))), pixels)
        if step % 40 == 0 and step < 0.8 * num_steps:
            revive()
        latents = tokenizer.encode(pixels)
        return mse_loss(tokenizer.decode(latents), pixels) + latents.loss["codebook"] + 0.25 * latents.loss["commitment"]

    return tokenizer, fit(tokenizer, next_loss, num_steps, lr=2e-3, weight_decay=0.0, what="tokenizer of scales")


def load_tokenizers(folder: Path, train: Digits, num_steps: int) -> Tokenizers:
    """Those in the folder, or trained if they are not there."""
    trained = {"vae": train_autoencoder, "vq": train_tokenizer, "scales": train_scales}
    files = {name: folder / f"ways_of_writing_{name}" for name in trained}
    for name, training in trained.items():
        if not files[name].is_dir():
            training(train, torch.Generator().manual_seed(0), num_steps)[0].save_pretrained(files[name])
    vae, scales = (mm.tokenizers.VisualTokenizer.from_pretrained(files[name]).to(DEVICE).eval() for name in ("vae", "scales"))
    vq = mm.tokenizers.ConvVQ.from_pretrained(files["vq"]).to(DEVICE).eval()
    return Tokenizers(vae, vq, scales, float(latents_of(vae, train.pixels[::4]).std()))
