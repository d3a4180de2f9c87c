"""OmniGen: one decoder reads text and images, and turns noise into the image that the prompt describes.

Shapes: B rows, L tokens, D width, C channels of a latent, h and w latents.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.layers.diffusion.adaln import TimeEmbedding
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.models.omnigen.layout import OMNIGEN_LAYOUTS
from mmblocks.models.omnigen.prompt import (
    Prompt,
    check_latents,
    check_prompts,
    join,
    only_the_prompt,
    output_table,
    prompt_rows,
)
from mmblocks.models.omnigen.trunk import Phi3Decoder, VelocityHead
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import is_readable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.llama import LlamaArguments, llama_layer

CacheMode = Literal["prompt", "upstream", "none"]
"""How keys and values are kept while sampling; see ``OmniGen.sample``."""


class _Branch(NamedTuple):
    """One condition of guidance: prompts, laid out and embedded, and what is kept of them."""

    table: TokenTable
    embeds: Tensor
    cache: KVCache | None


class OmniGen(Block):
    """A rectified flow in the latents of an image, conditioned on text and images read by the same decoder.

    The time runs from 0, noise, to 1, data. Latents are those of a KL-VAE (published: SDXL's), scaled as that VAE's config says;
    pixels are encoded and decoded outside. A row is: the prompt, causal, each input image seeing all of itself; a token for the
    time; the image that is made, which sees everything.

    Args:
        vocab_size: text ids.
        dim, num_layers: of the ``Phi3Decoder``.
        patch_size, channels: latents a side of a patch, and channels of a latent.
        table_size, base_size, interpolation: see ``SinCosPositions``.
        llama: the arguments of ``llama_layer``.

    Source: OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> import torch
        >>> from mmblocks.models import OmniGen
        >>> model = OmniGen(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16, table_size=8, base_size=8).eval()
        >>> prompt = [torch.tensor([1, 2]), torch.randn(4, 4, 4), torch.tensor([3])]  # text, an input image, text
        >>> tuple(model.loss([prompt], [torch.randn(4, 4, 6)]).shape)
        (1,)
        >>> (latents,) = model.sample([prompt], sizes=[(4, 6)], unconditional=[[torch.tensor([9])]], num_steps=2)
        >>> tuple(latents.shape)
        (4, 4, 6)
    """

    layouts: ClassVar[tuple[Layout, ...]] = OMNIGEN_LAYOUTS
    shorthand = staticmethod(llama_layer)

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        patch_size: int = 2,
        channels: int = 4,
        table_size: int = 192,
        base_size: int = 64,
        interpolation: float = 1.0,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.text = TextEmbedding(vocab_size=vocab_size, dim=dim)
        self.output_patches, self.input_patches = (
            LinearPatchEmbedding(
                dim=dim,
                patch_size=patch_size,
                channels=channels,
                positions=SinCosPositions(dim=dim, table_size=table_size, base_size=base_size, interpolation=interpolation),
            )
            for _ in range(2)
        )
        self.time_token = TimeEmbedding(dim)
        self.trunk = Phi3Decoder(dim=dim, num_layers=num_layers, **llama)
        self.head = VelocityHead(dim=dim, patch_size=patch_size, channels=channels)

    def forward(
        self, prompts: Sequence[Prompt], latents: Sequence[Float[Tensor, "C _ _"]], t: Float[Tensor, " B"]
    ) -> list[Float[Tensor, "C _ _"]]:
        """Velocities, data minus noise, in the latents' shapes.

        Args:
            prompts: one a row: text ids (n,) and latents of input images (C, h, w), in order.
            latents: between noise and data, each row's of its own size.
            t: in [0, 1]; 0 is noise.

        Raises:
            TypeError: a prompt of something else.
            ValueError: shapes that do not fit, or a time out of range (checked on CPU).
        """
        self._check(prompts, latents, t)
        return self._velocities(self._branch(prompts, None), list(latents), t)

    def loss(
        self,
        prompts: Sequence[Prompt],
        latents: Sequence[Float[Tensor, "C _ _"]],
        *,
        t: Float[Tensor, " B"] | None = None,
        noise: Sequence[Float[Tensor, "C _ _"]] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, " B"]:
        """Mean squared error of each row's velocity.

        Args:
            prompts: see ``forward``. Upstream replaces one in ten by an empty one while training; that is the data's part.
            latents: data.
            t: times, the sigmoid of a normal variable if None.
            noise: one for each row.
            generator: source of what is not given.
        """
        device = latents[0].device
        if t is None:
            t = torch.randn(len(latents), generator=generator, device=device).sigmoid()
        if noise is None:
            noise = [torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype) for x in latents]
        _check_same("noise", noise, latents)
        self._check(prompts, latents, t)
        between = [time * data + (1 - time) * start for time, data, start in zip(t, latents, noise, strict=True)]
        predicted = self(prompts, between, t)
        pairs = zip(predicted, latents, noise, strict=True)
        return torch.stack([(made - (data - start)).float().square().mean() for made, data, start in pairs])

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        unconditional: Sequence[Prompt] | None = None,
        images_only: Sequence[Prompt] | None = None,
        guidance: float = 2.5,
        image_guidance: float = 1.6,
        num_steps: int = 50,
        shift: float = 1.0,
        cache: CacheMode = "prompt",
        noise: Sequence[Float[Tensor, "C _ _"]] | None = None,
        generator: Generator | None = None,
        trajectory: list[tuple[list[Tensor], list[Tensor]]] | None = None,
    ) -> list[Float[Tensor, "C _ _"]]:
        """Latents, from noise by Euler's steps.

        Args:
            prompts: see ``forward``.
            sizes: (h, w) of each row's latents; those of ``noise`` if None.
            unconditional: prompts without the condition; none for no guidance.
            images_only: prompts with the input images alone; then the text is guided against them:
                ``u + image_guidance * (i - u) + guidance * (c - i)``; without them ``u + guidance * (c - u)``.
            guidance: 0 or more; 1 exaggerates nothing.
            image_guidance: likewise, of the input images.
            num_steps: steps.
            shift: above 1 more of the steps are near noise, below 1 near data.
            cache: "prompt" keeps keys and values of the prompts, the same result as "none" in less time; "upstream" too, with a
                fault of the official code's cache: in its first step the image does not see itself nor the time.
            noise: what to start from, in place of a generator.
            generator: its source.
            trajectory: a list that (latents, guided velocities) of every step are appended to.

        Raises:
            TypeError, ValueError: as ``forward``, and options out of their range, before any work.
        """
        _check_options(guidance, image_guidance, num_steps, shift, cache)
        groups = [group for group in (prompts, unconditional, images_only) if group is not None]
        if images_only is not None and unconditional is None:
            raise ValueError("images_only without unconditional; accepted: both, or unconditional alone")
        latents = self._noise(sizes, noise, generator)
        for group in groups:
            self._check(group, latents, torch.zeros(len(latents)))
        branches = [self._branch(group, None if cache == "none" else latents) for group in groups]

        sigmas = self.sigmas(num_steps, shift).to(latents[0].device)
        for step, (now, after) in enumerate(pairwise(sigmas)):
            t = now.expand(len(latents))
            blind = cache == "upstream" and step == 0
            predicted = [self._velocities(branch, latents, t, blind) for branch in branches]
            guided = [_guided(parts, guidance, image_guidance) for parts in zip(*predicted, strict=True)]
            if trajectory is not None:
                trajectory.append((latents, guided))
            latents = [x + (after - now) * velocity for x, velocity in zip(latents, guided, strict=True)]
        return latents

    @staticmethod
    def sigmas(num_steps: int, shift: float) -> Float[Tensor, " steps"]:
        """The times between steps, from 0 to 1."""
        t = torch.linspace(0, 1, num_steps + 1)
        return t / (t + shift - shift * t)

    def _branch(self, prompts: Sequence[Prompt], cached_for: list[Tensor] | None) -> _Branch:
        """Prompts embedded; read into a cache that has room for these latents too, where they are given."""
        device = self.text.weight.device
        rows = prompt_rows(prompts, self.patch_size, device)
        batch, length = rows.table.shape
        embeds = self.text(rows.ids.new_zeros(batch * length))  # padding may be anything
        embeds = embeds.index_copy(0, rows.id_places, self.text(rows.ids))
        if rows.images:
            images = self.input_patches([image.to(device) for image in rows.images]).embeds
            embeds = embeds.index_copy(0, rows.image_places, images.to(embeds.dtype))
        embeds = embeds.view(batch, length, -1)
        if cached_for is None:
            return _Branch(rows.table, embeds, None)
        total = length + 1 + max(self._num_tokens(x) for x in cached_for)
        cache = self.trunk.new_cache(batch, total)
        self.trunk(embeds, rows.table, cache, total_length=total)
        return _Branch(rows.table, embeds, cache)

    def _velocities(self, branch: _Branch, latents: list[Tensor], t: Tensor, blind: bool = False) -> list[Tensor]:
        new = output_table(branch.table, [(x.shape[1], x.shape[2]) for x in latents], self.patch_size)
        embeds = self._output_embeds(latents, t, new.shape[1])
        mask = only_the_prompt if blind else None
        if branch.cache is None:
            hidden = self.trunk(torch.cat([branch.embeds, embeds], dim=1), join(branch.table, new), mask=mask)
        else:
            hidden = self.trunk(embeds, new, branch.cache, mask=mask, total_length=branch.cache.capacity)
            branch.cache.forget(new.shape[1])  # the time and the image are other ones in each step
        hidden = hidden[:, -new.shape[1] + 1 :]
        states = [row[: self._num_tokens(x)] for row, x in zip(hidden, latents, strict=True)]
        return [self.head(row, time, (x.shape[1], x.shape[2])).to(x.dtype) for row, time, x in zip(states, t, latents, strict=True)]

    def _output_embeds(self, latents: list[Tensor], t: Tensor, length: int) -> Float[Tensor, "B L D"]:
        """The time, then the image, padded on the right."""
        times = self.time_token(t)
        tokens = self.output_patches(latents).embeds.to(times.dtype).split([self._num_tokens(x) for x in latents])
        rows = [
            torch.cat([time[None], image, image.new_zeros(length - 1 - len(image), image.shape[1])])
            for time, image in zip(times, tokens, strict=True)
        ]
        return torch.stack(rows)

    def _num_tokens(self, latents: Tensor) -> int:
        return latents.shape[1] * latents.shape[2] // self.patch_size**2

    def _noise(
        self, sizes: Sequence[tuple[int, int]] | None, noise: Sequence[Tensor] | None, generator: Generator | None
    ) -> list[Tensor]:
        if (sizes is None) == (noise is None):
            raise ValueError("sizes and noise are both given, or neither; accepted: one of them")
        if noise is not None:
            return list(noise)
        weight = self.text.weight
        options: dict[str, Any] = {"generator": generator, "device": weight.device, "dtype": weight.dtype}
        return [torch.randn(self.channels, *size, **options) for size in sizes or ()]

    def _check(self, prompts: Sequence[Prompt], latents: Sequence[Tensor], t: Tensor) -> None:
        check_prompts(prompts, self.channels, self.patch_size)
        for x in latents:
            check_latents("an image", x, self.channels, self.patch_size)
        if not len(prompts) == len(latents) or tuple(t.shape) != (len(prompts),):
            raise ValueError(f"{len(prompts)} prompts, {len(latents)} latents, t {tuple(t.shape)}; accepted: as many of each")
        if is_readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t lies in [{float(t.min()):g}, {float(t.max()):g}]; accepted: [0, 1], 0 is noise")


def _guided(parts: Sequence[Tensor], guidance: float, image_guidance: float) -> Tensor:
    """(conditional[, unconditional[, images only]]) to one velocity."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return parts[1] + guidance * (parts[0] - parts[1])
    conditional, unconditional, images = parts
    return unconditional + image_guidance * (images - unconditional) + guidance * (conditional - images)


def _check_options(guidance: float, image_guidance: float, num_steps: int, shift: float, cache: str) -> None:
    if not (guidance >= 0 and image_guidance >= 0):
        raise ValueError(f"guidance is {guidance}, image_guidance {image_guidance}; accepted: 0 or more")
    if num_steps < 1 or not shift > 0:
        raise ValueError(f"num_steps is {num_steps}, shift {shift}; accepted: 1 or more, and above 0")
    if cache not in ("prompt", "upstream", "none"):
        raise ValueError(f"cache is {cache!r}; accepted: 'prompt', 'upstream', 'none'")


def _check_same(name: str, values: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    shapes = [tuple(value.shape) for value in values], [tuple(value.shape) for value in wanted]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has shapes {shapes[0]}; accepted: those of latents, {shapes[1]}")
