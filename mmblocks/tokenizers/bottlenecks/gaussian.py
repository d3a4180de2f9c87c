"""The bottleneck of variational autoencoders: every feature is the mean and variance of a Gaussian, from which one draws.

Shapes: B images or clips, D width of a latent.
"""

from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.sequence.tokens import Latents


class DiagonalGaussian(Block):
    """Halves the last axis into mean and log-variance, and draws from there; gradients flow through the draw.

    Loss while training, unweighted: ``kl``, the divergence from the standard normal, summed over an image and averaged over the
    batch, as latent diffusion weights it.

    Args:
        logvar_range: between which the log-variance is clamped.

    Source: VAE (arXiv 1312.6114), as in latent diffusion (arXiv 2112.10752; CompVis/latent-diffusion).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import DiagonalGaussian
        >>> features = torch.randn(1, 2, 2, 6)
        >>> latents = DiagonalGaussian()(features, noise=torch.ones(1, 2, 2, 3))
        >>> torch.allclose(latents.z, features[..., :3] + (features[..., 3:] / 2).exp())
        True
    """

    codebook_sizes: ClassVar[tuple[int, ...]] = ()

    def __init__(self, *, logvar_range: tuple[float, float] = (-30.0, 20.0)) -> None:
        super().__init__()
        self.logvar_range = logvar_range

    def forward(
        self,
        features: Float[Tensor, "B *grid D2"],
        *,
        sample: bool | None = None,
        generator: Generator | None = None,
        noise: Float[Tensor, "B *grid D"] | None = None,
    ) -> Latents:
        """Means, then log-variances, along the last axis. Computed in float32; ``z`` has the dtype of the features.

        Args:
            features: of twice the latent's width.
            sample: draw, or take the mean. None draws while training, and where draws or their source are handed in.
            generator: source of randomness, which may live on another device.
            noise: the standard normal draws themselves.

        Raises:
            ValueError: an odd width, noise of another shape than the mean, or noise together with what it replaces.
        """
        if features.shape[-1] % 2:
            raise ValueError(f"features are {features.shape[-1]} wide; accepted: an even width, for mean and log-variance")
        if sample is None:
            sample = self.training or generator is not None or noise is not None
        if noise is not None and (generator is not None or not sample):
            raise ValueError("noise was given together with generator or sample=False; accepted: noise alone")
        mean, logvar = features.float().chunk(2, dim=-1)
        logvar = logvar.clamp(*self.logvar_range)
        z = mean
        if sample:
            z = mean + torch.exp(0.5 * logvar) * _standard_normal(mean, generator, noise)
        loss = {"kl": divergence(mean, logvar).sum() / max(len(mean), 1)} if self.training else None
        return Latents(z=z.to(features.dtype), loss=loss, mean=mean, logvar=logvar)

    def lookup(self, ids: Int[Tensor, "*N"]) -> NoReturn:
        """There is nothing to look up.

        Raises:
            ValueError: always.
        """
        raise ValueError("ids were given, but a Gaussian has no codes; accepted: Latents, of which z is decoded")


def divergence(mean: Float[Tensor, "*N D"], logvar: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """The Kullback-Leibler divergence of a Gaussian from the standard normal, in nats per entry."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def _standard_normal(like: Tensor, generator: Generator | None, noise: Tensor | None) -> Tensor:
    if noise is None:
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device).to(like.device)
    if noise.shape != like.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; accepted: {tuple(like.shape)}")
    return noise.to(like)
