"""Images by diffusion or flow in the latents of an autoencoder, conditioned on vectors: what all such generators share.

Shapes: B images, G streams of guidance, M conditions, D their width, C channels of latents, h and w their sides, H and W pixels.
"""

from collections.abc import Sequence
from typing import Protocol, Self, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Real
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance, check_scales
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, TokenSampler
from mmblocks.layers.diffusion.noise_paths import NoisePath
from mmblocks.layers.diffusion.scheduler_paths import path_of_scheduler
from mmblocks.layers.images.pixels import check_pixels
from mmblocks.roles import Tokenizer, check_role
from mmblocks.sequence.spans import Guide
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import is_readable


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


class LatentGenerator(Block, has_name=False):
    """The loss and the sampling of a network in latents. A subclass says how its network is called.

    Args:
        autoencoder: a continuous tokenizer of images, which is frozen; None for a network in pixels, scaled to [-1, 1].
        sampler: from noise to latents.
        path: what noise does to latents while the network learns; that of the sampler's scheduler if None.
    """

    def __init__(self, *, autoencoder: Block | None, sampler: Block, path: Block | None = None) -> None:
        super().__init__()
        check_role(sampler, TokenSampler, "sampler")
        if autoencoder is not None:
            check_role(autoencoder, LatentDecoder, "autoencoder")
            downsampling = cast(LatentDecoder, autoencoder).downsampling
            if len(downsampling) != 2:
                raise ValueError(f"downsampling of autoencoder is {downsampling}; accepted: two numbers, for images")
            autoencoder.requires_grad_(False).eval()
        if path is not None:
            check_role(path, NoisePath, "path")
        self.autoencoder = autoencoder
        self.sampler, self.path = cast(TokenSampler, sampler), path

    @property
    def condition_dim(self) -> int:
        """D."""
        raise NotImplementedError

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
        path = self.noise_path()
        if t is not None:
            path.check_times(t)
        if t is None or noise is None:
            times, sampled = self.times_and_noise(len(conditions), size, device=conditions.device, generator=generator)
            t, noise = times if t is None else t, sampled if noise is None else noise
        x = self.latents_of(images)
        for name, given, wanted in (("images", x[:, 0, 0, 0], conditions[:, 0, 0]), ("noise", noise, x), ("t", t, x[:, 0, 0, 0])):
            if given.shape != wanted.shape:
                raise ValueError(f"{name} has shape {tuple(given.shape)}; accepted: {tuple(wanted.shape)}")
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
        latents = self._sampled(
            streams, guide, size=size, reals=reals, noise=noise, generator=generator, trajectory=trajectory
        )  # fmt: skip
        return self.pixels_of(latents)

    @torch.no_grad()
    def sample_guided(
        self,
        streams: Sequence[Float[Tensor, "B _ D"]],
        guide: Guide,
        *,
        size: tuple[int, int],
        noise: Float[Tensor, "B C h w"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1], from conditions of several streams that a rule makes one prediction of.

        Args:
            streams: conditions, stream by stream; the first is what the images show.
            guide: predictions (G, B, X) -> the guided one (B, X), in each step.
            size: height and width in pixels.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.
            trajectory: the latents after each step are appended to it.

        Raises:
            ValueError: as ``sample``.
        """
        latents = self._sampled(streams, guide, size=size, noise=noise, generator=generator, trajectory=trajectory)
        return self.pixels_of(latents)

    def times_and_noise(
        self, count: int, size: tuple[int, int], *, device: torch.device, generator: Generator | None = None
    ) -> tuple[Real[Tensor, " B"], Float[Tensor, "B C h w"]]:
        """What is random in the loss of so many images of one size: times, and then noise."""
        t = self.noise_path().sample_times(count, device, generator)
        return t, torch.randn((count, *self._latent_shape(size)), generator=generator, device=device, dtype=torch.float32)

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

    def noise_path(self) -> NoisePath:
        """What noise does to latents while the network learns.

        Raises:
            ValueError: a sampler that says none, and no path.
        """
        if self.path is not None:
            return cast(NoisePath, self.path)
        if not isinstance(self.sampler, DiffusersSampler):
            raise ValueError(f"path is None with {type(self.sampler).__name__}; accepted: a path, or a DiffusersSampler")
        return path_of_scheduler(self.sampler.scheduler, self.sampler.settings)

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

    def _predict(
        self, x: Tensor, time: Tensor, conditions: Tensor, real: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        """What the network predicts of noised latents; ``time`` is one for all, or one for each."""
        raise NotImplementedError

    def _sampled(
        self,
        streams: Sequence[Tensor],
        guide: Guide,
        *,
        size: tuple[int, int],
        reals: Sequence[Tensor | None] = (),
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
        sampler, path = self._timed(shape), self.path
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


def _if_some(real: Bool[Tensor, "B M"] | None) -> Tensor | None:
    """The mask, where it hides anything."""
    return None if real is None or bool(real.all()) else real


def _joined(streams: Sequence[Tensor], reals: Sequence[Tensor | None]) -> Tensor | None:
    """One mask for all streams."""
    if all(_if_some(real) is None for real in reals):
        return None
    full = [stream.new_ones(stream.shape[:2], dtype=torch.bool) for stream in streams]
    return torch.cat([other if real is None else real for real, other in zip(reals, full, strict=True)])
