"""The two tokenizers of the recipes: of latents and of codes, both of 7 x 7 places."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Codes, Image, Segment

from digits import Digits
from emu3_like import train_tokenizer
from fit import DEVICE
from latents import latents_of, pixels_of, train_autoencoder


class Tokenizers(NamedTuple):
    """Both tokenizers, and the standard deviation of the latents, by which these are divided."""

    vae: mm.tokenizers.VisualTokenizer
    vq: mm.tokenizers.ConvVQ
    spread: float

    @torch.no_grad()
    def encode(self, images: str, pixels: Tensor) -> Tensor:
        """Pixels to "latents" or "codes", or as they are."""
        if images == "pixels":
            return pixels
        return latents_of(self.vae, pixels) / self.spread if images == "latents" else self.vq.encode(pixels.to(DEVICE)).ids.cpu()

    @torch.no_grad()
    def decode(self, image: Segment) -> Tensor:
        """What a model has written, as pixels (3, 28, 28)."""
        if isinstance(image, Image):
            return image.pixels.cpu()
        if isinstance(image, Codes):
            return self.vq.decode(image.grid[None].to(DEVICE))[0].cpu()
        return pixels_of(self.vae, image.values[None] * self.spread)[0]


def load_tokenizers(folder: Path, train: Digits, num_steps: int) -> Tokenizers:
    """Those in the folder, or trained if they are not there."""
    files = [folder / f"ways_of_writing_{name}" for name in ("vae", "vq")]
    if not files[1].is_dir():
        generator = torch.Generator().manual_seed(0)
        train_autoencoder(train, generator, num_steps)[0].save_pretrained(files[0])
        train_tokenizer(train, generator, num_steps)[0].save_pretrained(files[1])
    vae = mm.tokenizers.VisualTokenizer.from_pretrained(files[0]).to(DEVICE).eval()
    vq = mm.tokenizers.ConvVQ.from_pretrained(files[1]).to(DEVICE).eval()
    return Tokenizers(vae, vq, float(latents_of(vae, train.pixels[::4]).std()))
