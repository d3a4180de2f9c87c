"""Pixels from conditions by diffusion in a tokenizer's latents.

Shapes: B images, N conditions, D their width, C channels of latents.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.pixels.conditional_unet import ConditionalUNet
from mmblocks.pixels.latent_generator import LatentGenerator

EMU2_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""Of the EulerDiscreteScheduler that Emu2-Gen and SDXL use."""


class DiffusionDecoder(LatentGenerator):
    """Embeddings to the images they describe: Emu2's visual decoder, and any of its kind.

    Args:
        unet: predicts the noise in latents.
        autoencoder: a continuous tokenizer of images, such as ``DiffusersAutoencoder``; it is frozen.
        sampler: from noise to latents; Emu2's by default, an Euler sampler of 50 steps.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.pixels import ConditionalUNet, DiffusionDecoder
        >>> from mmblocks.tokenizers import DiffusersAutoencoder
        >>> down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
        >>> blocks = {"down_block_types": down, "up_block_types": up, "block_out_channels": [4, 8], "layers_per_block": 1}
        >>> told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
        >>> heads = {"norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6}
        >>> small = {"block_out_channels": [4], "norm_num_groups": 2}
        >>> decoder = DiffusionDecoder(
        ...     unet=ConditionalUNet(arguments={**blocks, **told, **heads}),
        ...     autoencoder=DiffusersAutoencoder(kind="AutoencoderKL", arguments=small),
        ...     sampler=DiffusersSampler(scheduler="EulerDiscreteScheduler", num_steps=2),
        ... )
        >>> tuple(decoder(torch.randn(1, 3, 6), torch.zeros(1, 3, 6), size=(8, 12)).shape)
        (1, 3, 8, 12)
        >>> tuple(decoder.loss(torch.randn(2, 3, 6), torch.rand(2, 3, 8, 12)).shape)  # of the noise that the U-Net predicts
        (2,)
    """

    def __init__(self, *, unet: Block, autoencoder: Block, sampler: Block | None = None) -> None:
        sampler = sampler or DiffusersSampler(scheduler="EulerDiscreteScheduler", options=EMU2_SCHEDULE)
        super().__init__(autoencoder=autoencoder, sampler=sampler)
        self.unet = cast(ConditionalUNet, unet)

    @property
    def condition_dim(self) -> int:
        """D."""
        return self.unet.condition_dim

    @property
    def channels(self) -> int:
        """C."""
        return self.unet.channels

    def forward(
        self,
        conditions: Float[Tensor, "B N D"],
        unconditional: Float[Tensor, "B N2 D"] | None = None,
        *,
        size: tuple[int, int] = (1024, 1024),
        guidance: float = 3.0,
        noise: Float[Tensor, "B C h w"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1].

        Args:
            conditions: what the images show: regressed embeddings, or an encoder's.
            unconditional: what nothing looks like: for Emu2 the regressed embeddings of an empty prompt, or those of an image of
                CLIP's mean colour (see ``Emu2Gen``). Not needed where ``guidance`` is 1.
            size: height and width in pixels; multiples of the autoencoder's step.
            guidance: 1 for the conditions as they are, more to exaggerate them.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.

        Raises:
            ValueError: another size, a guidance below 1, or one without ``unconditional``.
        """
        return self.sample(conditions, unconditional=unconditional, guidance=guidance, size=size, noise=noise, generator=generator)

    @torch.no_grad()
    def latents(
        self,
        conditions: Tensor,
        unconditional: Tensor | None,
        *,
        size: tuple[int, int],
        guidance: float,
        noise: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """The latents that are decoded, (B, C, h, w); the arguments are those of ``forward``."""
        streams, guide = self._streams(conditions, unconditional, guidance)
        return self._sampled(streams, guide, size=size, noise=noise, generator=generator, trajectory=None)

    def _predict(
        self, x: Tensor, time: Tensor, conditions: Tensor, real: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        sizes = torch.tensor([[*size, 0, 0, *size]], device=x.device).expand(len(x), -1)
        return self.unet(x.to(conditions.dtype), time, conditions, sizes, real=real)
