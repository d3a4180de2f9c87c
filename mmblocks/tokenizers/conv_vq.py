"""A small convolutional VQ tokenizer, to train from scratch on small images.

Shapes: B images, H and W pixels, h and w tokens, K codes, D width of a code.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from mmblocks.block import Block
from mmblocks.layers.pixels import check_pixels
from mmblocks.layers.vector_quantizer import VectorQuantizer
from mmblocks.tokens import Latents


class ResidualBlock(nn.Module):
    """A 3x3 and a 1x1 convolution, added to what comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Keeps the shape."""
        return x + self.second(silu(self.first(silu(x))))


class ConvVQ(Block):
    """Strided convolutions down to a grid of codes, and back up.

    Each stage halves the sides: with channels (32, 64), 28 x 28 pixels become 7 x 7 codes.

    Args:
        channels: width of each stage.
        num_codes: size of the codebook.
        code_dim: width of a code.

    Source: the architecture of VQ-VAE (arXiv 1711.00937).
    """

    def __init__(self, *, channels: tuple[int, ...] = (32, 64), num_codes: int = 128, code_dim: int = 16) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.patch_size = 2 ** len(channels)
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(code_dim, channels[-1], 3, padding=1), ResidualBlock(channels[-1])]
        for before, after in zip((3, *channels), channels, strict=False):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        for before, after in zip(channels[::-1], (*channels[-2::-1], 3), strict=True):
            up += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(*down, ResidualBlock(channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], code_dim, 1))
        self.quantizer = VectorQuantizer(num_codes=num_codes, dim=code_dim)
        self.decoder = nn.Sequential(*up)

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """What is quantised.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: a side that is no multiple of ``patch_size``, or pixels outside [0, 1] (NaN included).
        """
        check_pixels(pixels, num_axes=4)
        self._check_size(*pixels.shape[-2:])
        return self.encoder(pixels * 2 - 1).permute(0, 2, 3, 1)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Latents:
        """Pixels in [0, 1] to codes; while training, with the codebook and commitment losses."""
        quantized = self.quantizer(self.features(pixels))
        losses = {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        return Latents(z=quantized.vectors, ids=quantized.ids, loss=losses if self.training else None)

    def decode(self, latents: Latents | Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Latents, or code numbers alone, to pixels in [0, 1]; not clamped while training."""
        z = latents.z if isinstance(latents, Latents) else self.quantizer.lookup(latents)
        pixels = (self.decoder(z.permute(0, 3, 1, 2)) + 1) / 2
        return pixels if self.training else pixels.clamp(0, 1)

    @torch.no_grad()
    def fit_codebook(self, pixels: Float[Tensor, "B 3 H W"], generator: Generator | None = None) -> None:
        """Lays the codes where the features of these images are, by k-means: once the encoder has learned a little."""
        self.quantizer.fit(self.features(pixels).flatten(0, 2), generator=generator)

    @torch.no_grad()
    def revive_codes(self, pixels: Float[Tensor, "B 3 H W"], generator: Generator | None = None) -> int:
        """Moves codes that these images do not use to features that they do have; returns how many."""
        features = self.features(pixels).flatten(0, 2)
        used = torch.bincount(self.quantizer(features).ids, minlength=self.num_codes)
        return self.quantizer.replace_unused(features, used, generator)

    def _check_size(self, height: int, width: int) -> None:
        size = self.patch_size
        if height % size or width % size or not height or not width:
            near = tuple(max(round(side / size), 1) * size for side in (height, width))
            raise ValueError(f"pixels are {height}x{width}; accepted: multiples of {size}, such as {near[0]}x{near[1]}")
