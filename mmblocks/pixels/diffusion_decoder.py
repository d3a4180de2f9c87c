"""Pixels from conditions by diffusion in a tokenizer's latents.

Shapes: B images, N conditions, D their width, C channels of latents.
"""

from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance, check_scales
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, TokenSampler
from mmblocks.pixels.conditional_unet import ConditionalUNet
from mmblocks.roles import check_role

EMU2_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""Of the EulerDiscreteScheduler that Emu2-Gen and SDXL use."""


@runtime_checkable
class LatentDecoder(Protocol):
    """A tokenizer, as the decoder needs it."""

    @property
    def downsampling(self) -> tuple[int, ...]:
        """How many pixels a latent spans, on each axis."""
        ...

    def decode(self, latents: Float[Tensor, "B h w C"]) -> Float[Tensor, "B 3 H W"]:
        """Latents to pixels in [0, 1]."""
        ...


class DiffusionDecoder(Block):
    """Embeddings to the images they describe: Emu2's visual decoder, and any of its kind.

    Args:
        unet: predicts the noise in latents.
        autoencoder: a tokenizer whose ``decode`` takes latents (B, h, w, C); its ``downsampling`` says how many pixels each spans.
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
    """

    def __init__(self, *, unet: Block, autoencoder: Block, sampler: Block | None = None) -> None:
        super().__init__()
        sampler = sampler or DiffusersSampler(scheduler="EulerDiscreteScheduler", options=EMU2_SCHEDULE)
        check_role(autoencoder, LatentDecoder, "autoencoder")
        check_role(sampler, TokenSampler, "sampler")
        self.unet = cast(ConditionalUNet, unet)
        self.autoencoder, self.sampler = cast(LatentDecoder, autoencoder), cast(TokenSampler, sampler)
        self.guidance_rule = LinearGuidance()

    @torch.no_grad()
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
            unconditional: what nothing looks like: for Emu2 the regressed embeddings of an empty prompt, or those of a black image.
                Not needed where ``guidance`` is 1.
            size: height and width in pixels; multiples of the autoencoder's step.
            guidance: 1 for the conditions as they are, more to exaggerate them.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.

        Raises:
            ValueError: another size, a guidance below 1, or one without ``unconditional``.
        """
        latents = self.latents(conditions, unconditional, size=size, guidance=guidance, noise=noise, generator=generator)
        return self.autoencoder.decode(latents.movedim(1, -1))

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
        shape = self._shape(conditions, unconditional, size, guidance)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=conditions.device, dtype=torch.float32)
        elif noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; accepted: {shape}")
        times = self.sampler.times(None).to(conditions.device)
        streams = [conditions] if unconditional is None or guidance == 1 else [conditions, unconditional]
        alike = len({part.shape[1] for part in streams}) == 1
        sizes = torch.tensor([[*size, 0, 0, *size]], device=conditions.device).expand(len(conditions), -1)

        def predict(x: Tensor, step: int) -> Tensor:
            x = x.to(conditions.dtype)
            if alike:  # one pass for both streams
                count = len(streams)
                both = self.unet(x.repeat(count, 1, 1, 1), times[step], torch.cat(streams), sizes.repeat(count, 1))
                predicted = both.chunk(count)
            else:
                predicted = [self.unet(x, times[step], part, sizes) for part in streams]
            return self.guidance_rule(predicted, [guidance]) if len(streams) == 2 else predicted[0]

        return self.sampler.sample(predict, noise, None, generator=generator).to(conditions.dtype)

    def _shape(
        self, conditions: Tensor, unconditional: Tensor | None, size: tuple[int, int], guidance: float
    ) -> tuple[int, int, int, int]:
        check_scales([guidance], 2)
        if guidance != 1 and unconditional is None:
            raise ValueError(f"guidance is {guidance} and unconditional is None; accepted: both, or a guidance of 1")
        for name, value in (("conditions", conditions), ("unconditional", unconditional)):
            if value is not None and (value.shape[-1] != self.unet.condition_dim or len(value) != len(conditions)):
                wanted = f"({len(conditions)}, N, {self.unet.condition_dim})"
                raise ValueError(f"{name} has shape {tuple(value.shape)}; accepted: {wanted}")
        step = self.autoencoder.downsampling[-2:]
        if any(side < 1 or side % by for side, by in zip(size, step, strict=True)):
            near = tuple(max(round(side / by), 1) * by for side, by in zip(size, step, strict=True))
            raise ValueError(f"size is {size}; accepted: multiples of {tuple(step)}, such as {near}")
        return len(conditions), self.unet.channels, size[0] // step[0], size[1] // step[1]
