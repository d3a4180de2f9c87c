"""Between images and the latents that a network denoises.

Shapes: B images, C channels of latents, h and w their sides, H and W pixels.
"""

from typing import Protocol, Self, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels
from mmblocks.roles import Tokenizer, check_role
from mmblocks.sequence.tokens import Latents


@runtime_checkable
class LatentDecoder(Protocol):
    """A tokenizer, as the decoder needs it."""

    @property
    def downsampling(self) -> tuple[int, ...]:
        """How many pixels a latent spans, on each axis."""
        ...

    def decode(self, latents: Latents) -> Float[Tensor, "B 3 H W"]:
        """Latents, whose z is (B, h, w, C), to pixels in [0, 1]."""
        ...


class LatentSpace(Block, has_name=False):
    """A part that keeps an autoencoder, frozen, for a network in its latents.

    Args:
        autoencoder: a continuous tokenizer of images; None for a network in pixels, scaled to [-1, 1].
    """

    def __init__(self, *, autoencoder: Block | None) -> None:
        super().__init__()
        if autoencoder is not None:
            check_role(autoencoder, LatentDecoder, "autoencoder")
            downsampling = cast(LatentDecoder, autoencoder).downsampling
            if len(downsampling) != 2:
                raise ValueError(f"downsampling of autoencoder is {downsampling}; accepted: two numbers, for images")
            autoencoder.requires_grad_(False).eval()
        self.autoencoder = autoencoder

    @property
    def channels(self) -> int:
        """C."""
        raise NotImplementedError

    @property
    def patch(self) -> int:
        """Rows and columns of latents that the network makes one token of."""
        return 1

    def train(self, mode: bool = True) -> Self:
        """All but the autoencoder, which is not trained here."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    def check_size(self, height: int, width: int, *, num_conditions: int = 1) -> None:
        """Refuses images that the network cannot make.

        Raises:
            ValueError: sides that are no multiples of ``step``; the message names the nearest ones.
        """
        step = self.step
        near = tuple(max(round(side / by), 1) * by for side, by in zip((height, width), step, strict=True))
        if near != (height, width):
            raise ValueError(f"size is {(height, width)}; accepted: multiples of {step}, such as {near}")

    @property
    def step(self) -> tuple[int, int]:
        """Of which height and width are multiples, in pixels."""
        rows, columns = self._downsampling
        return rows * self.patch, columns * self.patch

    @torch.no_grad()
    def latents_of(self, images: Float[Tensor, "B 3 H W"] | Latents) -> Float[Tensor, "B C h w"]:
        """What the network learns to make of noise: the mean, where the autoencoder gives a distribution; in float32.

        Raises:
            ValueError: latents of another width than the network's.
        """
        if isinstance(images, Latents):
            z = images.z
        elif self.autoencoder is None:
            z = images.movedim(1, -1) * 2 - 1
        else:
            check_role(self.autoencoder, Tokenizer, "autoencoder", "encode")
            z = cast(Tokenizer, self.autoencoder).encode(images).z
        if z.ndim != 4 or z.shape[-1] != self.channels:
            raise ValueError(f"latents have shape {tuple(z.shape)}; accepted: (B, h, w, {self.channels})")
        return z.movedim(-1, 1).float()

    @torch.no_grad()
    def pixels_of(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Latents to pixels in [0, 1]."""
        if self.autoencoder is None:
            return (latents / 2 + 0.5).clamp(0, 1)
        return cast(LatentDecoder, self.autoencoder).decode(Latents(z=latents.movedim(1, -1)))

    def _size_of(self, images: Tensor | Latents) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(images, Latents):
            rows, columns = images.z.shape[1:3]
            return rows * self._downsampling[0], columns * self._downsampling[1]
        check_pixels(images, num_axes=4)
        return images.shape[-2], images.shape[-1]

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return self.channels, size[0] // self._downsampling[0], size[1] // self._downsampling[1]

    @property
    def _downsampling(self) -> tuple[int, int]:
        if self.autoencoder is None:
            return 1, 1
        rows, columns = cast(LatentDecoder, self.autoencoder).downsampling
        return rows, columns
