"""OmniGen: one decoder reads text and images, and turns noise into the image that the prompt describes.

Shapes: B rows, N tokens of all images that are made, C channels of a latent, h and w latents.
"""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.generation.guidance import ClassifierFree, Guidance, ThreeWay
from mmblocks.generation.options import Generation
from mmblocks.heads.span_denoising import SpanDenoisingHead
from mmblocks.layers.diffusion.rectified_flow import RectifiedFlow
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.models.omnigen.layout import OMNIGEN_FORMER, OMNIGEN_LAYOUTS
from mmblocks.models.omnigen.prompt import Prompt, check_latents, check_prompts, one_image, only_the_prompt, output, segments
from mmblocks.models.omnigen.trunk import Phi3Decoder, VelocityHead
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.segments import Vectors
from mmblocks.sequence.spans import Spans, to_patches
from mmblocks.trunks.llama import LlamaArguments, llama_layer

CacheMode = Literal["prompt", "upstream", "none"]
"""What the image sees in its first step; see ``OmniGen.sample``."""


class OmniGen(Block):
    """A rectified flow in the latents of an image, conditioned on text and images read by the same decoder.

    The time runs from 0, noise, to 1, data. Latents are those of a KL-VAE (published: SDXL's), scaled as that VAE's config says;
    pixels are encoded and decoded outside. A row is: the prompt, causal, each input image seeing all of itself; a token for the
    time; the image that is made, which sees everything.

    The parts are those of its attribute ``model``, a ``MultimodalModel`` with inputs "text", "vision" (input images) and "noised"
    and a head "image". Any of them may stand in another model, beside other inputs and heads.

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
    former: ClassVar[Layout | None] = OMNIGEN_FORMER
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
        noised, vision = (
            LinearPatchEmbedding(
                dim=dim,
                patch_size=patch_size,
                channels=channels,
                positions=SinCosPositions(dim=dim, table_size=table_size, base_size=base_size, interpolation=interpolation),
            )
            for _ in range(2)
        )
        head = SpanDenoisingHead(
            dim=dim,
            channels=channels,
            patch=patch_size,
            path=RectifiedFlow(),
            sampler=RectifiedFlow.sampler(),
            time="token",
            output=VelocityHead(dim=dim, patch_size=patch_size, channels=channels),
        )
        self.model = MultimodalModel(
            inputs={"text": TextEmbedding(vocab_size=vocab_size, dim=dim), "vision": vision, "noised": noised},
            trunk=Phi3Decoder(dim=dim, num_layers=num_layers, **llama),
            outputs={"image": head},
        )

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
        batch = self._batch(prompts, latents, t)
        spans, head = batch.spans["image"], self._head
        told = head.condition(t, spans)
        hidden = self.model.hidden(batch, readings={"image": head.reading(spans.rows(), told, spans)})
        found = head.predicted(hidden.flatten(0, 1)[spans.states], told, spans)
        return _maps(found, spans, latents)

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
        if t is None:
            t = self._head.path.sample_times(len(latents), latents[0].device, generator)
        if noise is None:
            noise = [torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype) for x in latents]
        _check_same("noise", noise, latents)
        batch = self._batch(prompts, latents, t)
        rows = torch.cat([to_patches(x.movedim(0, -1).float(), self.patch_size) for x in noise])
        losses = self.model(batch, given={"image": {"t": t, "noise": rows}}).token_losses["image"]
        return torch.stack([own.mean() for own in batch.spans["image"].split(losses)])

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
            cache: "upstream" for a fault of the official cache: in the first step the image sees neither itself nor the time.
            noise: what to start from, in place of a generator.
            generator: its source.
            trajectory: a list that (latents, guided velocities) of every step are appended to.

        Raises:
            TypeError, ValueError: as ``forward``, and options out of their range, before any work.
        """
        if cache == "none":  # former: the whole row in each step
            warnings.warn("cache='none' is 'prompt' now, of the same result, and goes with version 0.3", FutureWarning, 2)
            cache = "prompt"
        _check_options(guidance, image_guidance, num_steps, shift, cache)
        if images_only is not None and unconditional is None:
            raise ValueError("images_only without unconditional; accepted: both, or unconditional alone")
        start = self._noise(sizes, noise, generator)
        groups = [group for group in (prompts, images_only, unconditional) if group is not None]
        for group in groups:
            self._check(group, start, torch.zeros(len(start)))
        ways: list[Guidance | None] = [
            None,
            ClassifierFree(scale=guidance),
            ThreeWay(scale=guidance, image_scale=image_guidance, images_only=False),
        ]
        steps: list[tuple[Tensor, Tensor]] = []
        writing = {
            "sampler": RectifiedFlow.sampler(num_steps, shift),
            "noise": [x.movedim(0, -1) for x in start],
            "mask": only_the_prompt if cache == "upstream" else None,
            "trajectory": None if trajectory is None else steps,
        }
        made = self.model.generate(
            [segments(prompt) for prompt in prompts],
            [one_image((x.shape[1], x.shape[2])) for x in start],
            Generation(guidance=ways[len(groups) - 1], writing={"image": writing}, generator=0),
            unconditional=[segments(prompt) for group in groups[1:] for prompt in group],
        )
        found = {row: cast(Vectors, segment).values.movedim(-1, 0) for row, segment in made}
        if trajectory is not None:
            spans = self._batch(prompts, start, torch.zeros(len(start))).spans["image"]
            trajectory += [(_maps(x, spans, start), _maps(guided, spans, start)) for x, guided in steps]
        return [found[row].to(x.dtype) for row, x in enumerate(start)]

    @staticmethod
    def sigmas(num_steps: int, shift: float) -> Float[Tensor, " steps"]:
        """The times between steps, from 0 to 1."""
        return torch.cat([RectifiedFlow.sampler(num_steps, shift).times(None), torch.ones(1)])

    @property
    def _head(self) -> SpanDenoisingHead:
        return cast(SpanDenoisingHead, self.model.outputs["image"])

    def _batch(self, prompts: Sequence[Prompt], latents: Sequence[Tensor], t: Tensor) -> Batch:
        """Prompts, each followed by its image."""
        self._check(prompts, latents, t)
        samples = [[*segments(prompt), output(x)] for prompt, x in zip(prompts, latents, strict=True)]
        batch = self.model.batch_builder()(samples).to(latents[0].device)
        images = [count + 1 for count in batch.spans["image"].counts]
        real = (~batch.table.is_padding).sum(dim=1)
        # Upstream pads prompts and images apart, and its angles follow from both.
        total = (real - torch.tensor(images, device=real.device)).amax() + max(images)
        return batch._replace(beside={"total_length": total.expand(len(real))})

    def _noise(
        self, sizes: Sequence[tuple[int, int]] | None, noise: Sequence[Tensor] | None, generator: Generator | None
    ) -> list[Tensor]:
        if (sizes is None) == (noise is None):
            raise ValueError("sizes and noise are both given, or neither; accepted: one of them")
        if noise is not None:
            return list(noise)
        like = next(self._head.output.parameters())
        alike: dict[str, Any] = {"generator": generator, "device": like.device, "dtype": like.dtype}
        return [torch.randn(self.channels, *size, **alike) for size in sizes or ()]

    def _check(self, prompts: Sequence[Prompt], latents: Sequence[Tensor], t: Tensor) -> None:
        check_prompts(prompts, self.channels, self.patch_size)
        for x in latents:
            check_latents("an image", x, self.channels, self.patch_size)
        if not len(prompts) == len(latents) or tuple(t.shape) != (len(prompts),):
            raise ValueError(f"{len(prompts)} prompts, {len(latents)} latents, t {tuple(t.shape)}; accepted: as many of each")
        self._head.path.check_times(t)


def _maps(rows: Float[Tensor, "N C2"], spans: Spans, like: Sequence[Tensor]) -> list[Tensor]:
    """Latents (C, h, w) of each image, in the dtype of others."""
    return [one.movedim(-1, 0).to(other.dtype) for one, other in zip(spans.maps(rows), like, strict=True)]


def _check_options(guidance: float, image_guidance: float, num_steps: int, shift: float, cache: str) -> None:
    if not (guidance >= 0 and image_guidance >= 0):
        raise ValueError(f"guidance is {guidance}, image_guidance {image_guidance}; accepted: 0 or more")
    if num_steps < 1 or not shift > 0:
        raise ValueError(f"num_steps is {num_steps}, shift {shift}; accepted: 1 or more, and above 0")
    if cache not in ("prompt", "upstream"):
        raise ValueError(f"cache is {cache!r}; accepted: 'prompt', 'upstream'")


def _check_same(name: str, values: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    shapes = [tuple(value.shape) for value in values], [tuple(value.shape) for value in wanted]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has shapes {shapes[0]}; accepted: those of latents, {shapes[1]}")
