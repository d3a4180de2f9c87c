"""Continuous latents in the scale that other models learn: of a Gaussian its mean or a draw, or what an encoder gives as it is.

Shapes: B images or clips, D width of a latent.
"""

import math
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian

PerChannel = float | tuple[float, ...]
"""One number for all channels, or one for each."""


def rescale(latent: Float[Tensor, "*N D"], shift: PerChannel, scale: PerChannel) -> Float[Tensor, "*N D"]:
    """(latent - shift) * scale, channel by channel."""
    return (latent - latent.new_tensor(shift)) * latent.new_tensor(scale)


def unscale(z: Float[Tensor, "*N D"], shift: PerChannel, scale: PerChannel) -> Float[Tensor, "*N D"]:
    """The inverse of ``rescale``."""
    return z / z.new_tensor(scale) + z.new_tensor(shift)


class ScaledLatents(Block):
    """z = (latent - shift) * scale, where the latent is the encoder's output, or the mean or a draw of the Gaussian in it.

    ``Latents.mean`` and ``Latents.logvar`` are those of z, so that ``mean + (logvar / 2).exp() * noise`` is a draw of it. The
    loss ``kl`` is that of ``DiagonalGaussian``, before scaling.

    Args:
        dim: D.
        gaussian: whether the features are D means and then D logarithms of variances, or D plain values.
        shift, scale: numbers for all channels, or one a channel.

    Raises:
        ValueError: another number of them than D, or a scale of 0.

    Source: latent diffusion (arXiv 2112.10752), section on the scale of latents.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import ScaledLatents
        >>> features = torch.randn(1, 2, 2, 2 * 4)
        >>> bottleneck = ScaledLatents(dim=4, shift=0.5, scale=2.0)
        >>> latents = bottleneck(features, sample=False)
        >>> torch.allclose(latents.z, (features[..., :4] - 0.5) * 2)
        True
    """

    codebook_sizes: ClassVar[tuple[int, ...]] = ()

    def __init__(self, *, dim: int, gaussian: bool = True, shift: PerChannel = 0.0, scale: PerChannel = 1.0) -> None:
        super().__init__()
        for name, value in (("shift", shift), ("scale", scale)):
            if isinstance(value, tuple) and len(value) != dim:
                raise ValueError(f"{name} holds {len(value)} numbers; accepted: one, or {dim} (one a channel)")
        if 0 in (scale if isinstance(scale, tuple) else (scale,)):
            raise ValueError(f"scale is {scale}; accepted: numbers other than 0")
        self.dim = dim
        self.shift = shift
        self.scale = scale
        self.distribution = DiagonalGaussian() if gaussian else None

    def forward(
        self,
        features: Float[Tensor, "B *grid C"],
        *,
        sample: bool | None = None,
        generator: Generator | None = None,
        noise: Float[Tensor, "B *grid D"] | None = None,
    ) -> Latents:
        """The mean, or a draw.

        Args:
            features: (B, *grid, 2 D), or (B, *grid, D) without a Gaussian.
            sample: draw, or take the mean. None draws while training, and where draws or their source are handed in.
            generator: source of randomness. The draws are those of diffusers, whose latents have their channels first.
            noise: the draws themselves, standard normal, (B, *grid, D).

        Raises:
            ValueError: features of another width; a draw where there is no Gaussian; noise of another shape.
        """
        width = self.dim if self.distribution is None else 2 * self.dim
        if features.shape[-1] != width:
            raise ValueError(f"features have width {features.shape[-1]}; accepted: {width}")
        handed_in = generator is not None or noise is not None
        if self.distribution is None:
            if sample or handed_in:
                raise ValueError("there is nothing to draw: the encoder gives no variance; accepted: sample=False")
            return Latents(z=rescale(features, self.shift, self.scale))
        sample = self.training or handed_in if sample is None else sample
        if sample and noise is None:
            noise = _channels_first_noise(features[..., : self.dim], generator)
        latents = self.distribution(features, sample=sample, noise=noise)
        return latents._replace(
            z=rescale(latents.z, self.shift, self.scale),
            mean=rescale(latents.mean, self.shift, self.scale),
            logvar=latents.logvar + latents.logvar.new_tensor(self._log_variance_of_scale()),
        )

    def lookup(self, ids: Int[Tensor, "*N"]) -> NoReturn:
        """There is nothing to look up.

        Raises:
            ValueError: always.
        """
        raise ValueError("ids were given, but the latents are continuous and have no codes; accepted: Latents, or their z")

    def _log_variance_of_scale(self) -> PerChannel:
        if isinstance(self.scale, tuple):
            return tuple(2 * math.log(abs(scale)) for scale in self.scale)
        return 2 * math.log(abs(self.scale))


def _channels_first_noise(like: Tensor, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.movedim(-1, 1).shape, generator=generator, device=device, dtype=like.dtype)
    return noise.movedim(1, -1).to(like.device)
