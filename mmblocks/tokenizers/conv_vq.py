"""A small convolutional VQ tokenizer, to train from scratch on small images.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from mmblocks.block import Block
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


class SmallResidualBlock(nn.Module):
    """A 3x3 and a 1x1 convolution, added to what comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Keeps the shape."""
        return x + self.second(silu(self.first(silu(x))))


class StridedEncoder(Block):
    """Strided convolutions, each of which halves the sides.

    Args:
        channels: width of each stage.
        code_dim: width of a code.
    """

    def __init__(self, *, channels: tuple[int, ...], code_dim: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in _pairs(3, channels):
            stages += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        self.net = nn.Sequential(*stages, SmallResidualBlock(channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], code_dim, 1))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Pixels, normalised, to features."""
        return channels_last(self.net(pixels))


class StridedDecoder(Block):
    """Transposed convolutions, each of which doubles the sides.

    Args:
        channels: width of each stage of the encoder.
        code_dim: width of a code.
    """

    def __init__(self, *, channels: tuple[int, ...], code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim
        stages: list[nn.Module] = [nn.Conv2d(code_dim, channels[-1], 3, padding=1), SmallResidualBlock(channels[-1])]
        for after, before in reversed(_pairs(3, channels)):
            stages += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.net = nn.Sequential(*stages)

    def forward(self, features: Float[Tensor, "B h w D"]) -> Float[Tensor, "B 3 H W"]:
        """Features to pixels, normalised.

        Raises:
            ValueError: features of another shape.
        """
        check_shape("features", features, "B", "h", "w", self.code_dim)
        return self.net(channels_first(features))


class ConvVQ(VisualTokenizer):
    """Strided convolutions down to a grid of codes, and back up.

    Each stage halves the sides: with channels (32, 64), 28 x 28 pixels become 7 x 7 codes.

    Args:
        channels: width of each stage.
        num_codes: size of the codebook.
        code_dim: width of a code.

    Source: the architecture of VQ-VAE (arXiv 1711.00937).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import ConvVQ
        >>> tokenizer = ConvVQ(channels=(8, 16), num_codes=32, code_dim=4)
        >>> latents = tokenizer.encode(torch.rand(2, 3, 28, 28))
        >>> tuple(latents.ids.shape), sorted(latents.loss)
        ((2, 7, 7), ['codebook', 'commitment'])
        >>> tuple(tokenizer.decode(latents).shape)
        (2, 3, 28, 28)
    """

    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}
    bottleneck: VectorQuantizer

    def __init__(self, *, channels: tuple[int, ...] = (32, 64), num_codes: int = 128, code_dim: int = 16) -> None:
        super().__init__(
            encoder=StridedEncoder(channels=channels, code_dim=code_dim),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=StridedDecoder(channels=channels, code_dim=code_dim),
            downsampling=(2 ** len(channels),) * 2,
        )

    @torch.no_grad()
    def fit_codebook(self, pixels: Float[Tensor, "B 3 H W"], generator: Generator | None = None) -> None:
        """Lays the codes where the features of these images are, by k-means: once the encoder has learned a little."""
        self.bottleneck.fit(self.features(pixels).flatten(0, 2), generator=generator)

    @torch.no_grad()
    def revive_codes(self, pixels: Float[Tensor, "B 3 H W"], generator: Generator | None = None) -> int:
        """Moves codes that these images do not use to features that they do have; returns how many."""
        features = self.features(pixels).flatten(0, 2)
        used = torch.bincount(self.bottleneck.nearest(features), minlength=len(self.bottleneck.codes))
        return self.bottleneck.replace_unused(features, used, generator)


def _pairs(first: int, channels: Sequence[int]) -> list[tuple[int, int]]:
    """Channels before and after each stage."""
    return list(zip((first, *channels), channels, strict=False))
