"""Images by diffusion or flow in the latents of an autoencoder, conditioned on vectors: what all such generators share.

Shapes: B images, G streams of guidance, M conditions, D their width, C channels of latents, h and w their sides, H and W pixels.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Real
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance, check_scales
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, TokenSampler
from mmblocks.layers.diffusion.noise_paths import NoisePath
from mmblocks.layers.diffusion.scheduler_paths import path_of_scheduler
from mmblocks.pixels.latent_space import LatentSpace
from mmblocks.roles import check_role
from mmblocks.sequence.spans import Guide
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import is_readable


class LatentGenerator(LatentSpace, has_name=False):
    """The loss and the sampling of a network in latents. A subclass says how its network is called.

    Args:
        autoencoder: a continuous tokenizer of images, which is frozen; None for a network in pixels, scaled to [-1, 1].
        sampler: from noise to latents.
        path: what noise does to latents while the network learns; that of the sampler's scheduler if None.
    """

    def __init__(self, *, autoencoder: Block | None, sampler: Block, path: Block | None = None) -> None:
        super().__init__(autoencoder=autoencoder)
        check_role(sampler, TokenSampler, "sampler")
        if path is not None:
            check_role(path, NoisePath, "path")
        self.sampler, self.path = cast(TokenSampler, sampler), path
        self._found: tuple[TokenSampler, NoisePath] | None = None

    @property
    def condition_dim(self) -> int:
        """D."""
        raise NotImplementedError

    def loss(
        self,
        conditions: Float[Tensor, "B M D"],
        images: Float[Tensor, "B 3 H W"] | Latents,
        *,
        real: Bool[Tensor, "B M"] | None = None,
        t: Real[Tensor, " B"] | None = None,
        noise: Float[Tensor, "B C h w"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, " B"]:
        """The network's own loss for each image, in float32.

        Args:
            conditions: what the images show.
            images: pixels in [0, 1], or latents that the autoencoder has made of them already.
            real: which conditions there are; None for all.
            t: times in the path's unit, in place of a generator.
            noise: of unit variance, in place of a generator.
            generator: source of randomness.

        Raises:
            ValueError: conditions, masks, images, times or noise that do not fit.
        """
        self._check_conditions("conditions", conditions, real, len(conditions))
        size = self._size_of(images)
        self.check_size(*size, num_conditions=conditions.shape[1])
        path, shape = self.noise_path(), (len(conditions), *self._latent_shape(size))
        if t is not None:
            path.check_times(t)
        count = (len(images.z if isinstance(images, Latents) else images),)
        for name, found, wanted in (("images", count, shape[:1]), ("t", _shape(t), shape[:1]), ("noise", _shape(noise), shape)):
            if found is not None and found != wanted:
                raise ValueError(f"{name} {'have' if name == 'images' else 'has'} shape {found}; accepted: {wanted}")
        if t is None or noise is None:
            times, sampled = self.times_and_noise(len(conditions), size, device=conditions.device, generator=generator)
            t, noise = times if t is None else t, sampled if noise is None else noise
        x = self.latents_of(images)
        flat, noise = x.flatten(1), noise.float().flatten(1)
        noised = path.corrupt(flat, noise, t).view_as(x)
        output = self._predict(noised, path.net_time(t), conditions, _if_some(real), size)
        return path.losses(output.float().flatten(1), flat, noise, t)

    @torch.no_grad()
    def sample(
        self,
        conditions: Float[Tensor, "B M D"],
        *,
        unconditional: Float[Tensor, "B M2 D"] | None = None,
        guidance: float = 1.0,
        size: tuple[int, int],
        real: Bool[Tensor, "B M"] | None = None,
        noise: Float[Tensor, "B C h w"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1].

        Args:
            conditions: what the images show.
            unconditional: what nothing looks like; not needed where ``guidance`` is 1. All of it is read.
            guidance: 1 for the conditions as they are, more to exaggerate them.
            size: height and width in pixels; multiples of the autoencoder's step and the network's.
            real: which of the conditions there are; None for all.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.
            trajectory: the latents after each step are appended to it.

        Raises:
            ValueError: another size, a guidance below 1 or one without ``unconditional``, or what has another shape.
        """
        streams, guide = self._streams(conditions, unconditional, guidance)
        reals = [real, None][: len(streams)]
        latents = self._sampled(streams, guide, size, reals, noise=noise, generator=generator, trajectory=trajectory)
        return self.pixels_of(latents)

    @torch.no_grad()
    def sample_guided(
        self,
        streams: Sequence[Float[Tensor, "B _ D"]],
        guide: Guide,
        *,
        size: tuple[int, int],
        reals: Sequence[Bool[Tensor, "B _"] | None] | None = None,
        noise: Float[Tensor, "B C h w"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1], from conditions of several streams that a rule makes one prediction of.

        Args:
            streams: conditions, stream by stream; the first is what the images show.
            guide: predictions (G, B, X) -> the guided one (B, X), in each step.
            size: height and width in pixels.
            reals: by stream, which of the conditions there are; None for all.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.
            trajectory: the latents after each step are appended to it.

        Raises:
            ValueError: as ``sample``.
        """
        latents = self._sampled(streams, guide, size, reals or (), noise=noise, generator=generator, trajectory=trajectory)
        return self.pixels_of(latents)

    def times_and_noise(
        self, count: int, size: tuple[int, int], *, device: torch.device, generator: Generator | None = None
    ) -> tuple[Real[Tensor, " B"], Float[Tensor, "B C h w"]]:
        """What is random in the loss of so many images of one size: times, and then noise."""
        t = self.noise_path().sample_times(count, device, generator)
        return t, torch.randn((count, *self._latent_shape(size)), generator=generator, device=device, dtype=torch.float32)

    def noise_path(self) -> NoisePath:
        """What noise does to latents while the network learns.

        Raises:
            ValueError: a sampler that says none, and no path.
        """
        if self.path is not None:
            return cast(NoisePath, self.path)
        if not isinstance(self.sampler, DiffusersSampler):
            raise ValueError(f"path is None with {type(self.sampler).__name__}; accepted: a path, or a DiffusersSampler")
        if self._found is None or self._found[0] is not self.sampler:
            self._found = (self.sampler, path_of_scheduler(self.sampler.scheduler, self.sampler.settings))
        return self._found[1]

    def _predict(
        self, x: Tensor, time: Tensor, conditions: Tensor, real: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        """What the network predicts of noised latents; ``time`` is one for all, or one for each."""
        raise NotImplementedError

    def _sampled(
        self,
        streams: Sequence[Tensor],
        guide: Guide,
        size: tuple[int, int],
        reals: Sequence[Tensor | None] = (),
        *,
        noise: Tensor | None,
        generator: Generator | None,
        trajectory: list[Tensor] | None,
    ) -> Tensor:
        """The latents that are decoded, (B, C, h, w)."""
        first, reals = streams[0], list(reals) or [None] * len(streams)
        for place, (stream, real) in enumerate(zip(streams, reals, strict=True)):
            self._check_conditions("unconditional" if place else "conditions", stream, real, len(first))
            self.check_size(*size, num_conditions=stream.shape[1])
        shape = (len(first), *self._latent_shape(size))
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=first.device, dtype=torch.float32)
        elif noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; accepted: {shape}")
        sampler = self._timed(shape)
        path = self.path if isinstance(sampler, DiffusersSampler) else self.noise_path()
        times = sampler.times(path).to(first.device)
        alike = len({stream.shape[1] for stream in streams}) == 1
        batches = (
            [(torch.cat(list(streams)), _joined(streams, reals))]
            if alike
            else list(zip(streams, map(_if_some, reals), strict=True))
        )

        def predict(x: Tensor, step: int) -> Tensor:
            found = [self._predict(x.repeat(len(part) // len(x), 1, 1, 1), times[step], part, real, size) for part, real in batches]
            stacked = torch.cat(found).float().unflatten(0, (len(streams), len(x)))
            return guide(stacked.flatten(2)).view_as(x)

        return sampler.sample(predict, noise.float(), path, generator=generator, trajectory=trajectory)

    def _timed(self, shape: tuple[int, ...]) -> TokenSampler:
        """The sampler for latents of this shape."""
        if not isinstance(self.sampler, DiffusersSampler):
            return self.sampler
        return self.sampler.for_tokens(shape[-2] * shape[-1] // self.patch**2)

    def _streams(self, conditions: Tensor, unconditional: Tensor | None, guidance: float) -> tuple[list[Tensor], Guide]:
        """Conditions of one stream or of two, and what makes one prediction of theirs."""
        check_scales([guidance], 2)
        if guidance == 1:
            return [conditions], lambda predicted: predicted[0]
        if unconditional is None:
            raise ValueError(f"guidance is {guidance} and unconditional is None; accepted: both, or a guidance of 1")
        rule = LinearGuidance()
        return [conditions, unconditional], lambda predicted: rule(list(predicted), [guidance])

    def _check_conditions(self, name: str, conditions: Tensor, real: Tensor | None, count: int) -> None:
        if conditions.ndim != 3 or len(conditions) != count or conditions.shape[-1] != self.condition_dim:
            raise ValueError(f"{name} has shape {tuple(conditions.shape)}; accepted: ({count}, M, {self.condition_dim})")
        if real is None:
            return
        if real.shape != conditions.shape[:2]:
            raise ValueError(f"real has shape {tuple(real.shape)}; accepted: {tuple(conditions.shape[:2])}")
        if is_readable(real) and not bool(real.any(dim=1).all()):
            raise ValueError("real has a row without any condition; accepted: one or more in each")


def _shape(values: Tensor | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values.shape)


def _if_some(real: Bool[Tensor, "B M"] | None) -> Tensor | None:
    """The mask, where it hides anything."""
    return None if real is None or bool(real.all()) else real


def _joined(streams: Sequence[Tensor], reals: Sequence[Tensor | None]) -> Tensor | None:
    """One mask for all streams."""
    if all(_if_some(real) is None for real in reals):
        return None
    full = [stream.new_ones(stream.shape[:2], dtype=torch.bool) for stream in streams]
    return torch.cat([other if real is None else real for real, other in zip(reals, full, strict=True)])
