"""Guidance: predictions with and without a condition, combined into one.

A guidance says how many streams it reads (each prompt once with its condition, and again with less of it) and what it
makes of their logits. All streams run in one forward pass and read the same ids.

Logits of some ids only may be given: the missing normaliser shifts all of a row alike, which changes no probability.

Shapes: S streams, N rows, V ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.generation.timed_guidance import TimedGuidance
from mmblocks.layers.diffusion.denoising_guidance import exaggerated


@runtime_checkable
class Guidance(Protocol):
    """How several streams become one prediction.

    ``num_streams`` counts the stream with the whole condition, which comes first. ``images_only`` says that the others read
    images but no generated text, and are used at visual codes alone, as in Emu3.5.
    """

    @property
    def num_streams(self) -> int:
        """S."""
        ...

    @property
    def images_only(self) -> bool:
        """Whether only images are guided."""
        ...

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """The logits to sample from, in step 0, 1, ... of the generation."""
        ...


def classifier_free(conditional: Float[Tensor, "N V"], unconditional: Float[Tensor, "N V"], scale: float) -> Float[Tensor, "N V"]:
    """``u + scale * (c - u)`` on log probabilities: 1 is the condition alone, more exaggerates it.

    Source: classifier-free guidance (arXiv 2207.12598) as Emu3 applies it to logits.
    """
    return _guided(torch.stack([conditional, unconditional]), scale)


def _guided(logits: Float[Tensor, "2 N V"], scale: float) -> Float[Tensor, "N V"]:
    c, u = logits.log_softmax(dim=-1)
    return (c - u).mul_(scale).add_(u)  # u + scale * (c - u), in memory taken once


def _check_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; accepted: a finite number")


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Two streams: with the condition and without it, as ``classifier_free`` combines them.

    Args:
        scale: 1 is the condition alone.
        images_only: leave text alone; see ``Guidance``.
        last_step: guide up to this step, and take the condition alone after it; None for all steps. LlamaGen's
            ``cfg_interval`` of n is ``last_step=n + 1``, since it counts from the second code on.
        normalise: combine log probabilities (Emu3). LlamaGen combines plain logits, from which equal samples come.

    Raises:
        ValueError: a scale that is not finite.

    Examples:
        >>> import torch
        >>> from mmblocks.generation import ClassifierFree
        >>> logits = torch.randn(2, 3, 8)  # with the condition and without, for three rows
        >>> guided = ClassifierFree(scale=2.0, normalise=False).combine(logits, step=0)
        >>> torch.allclose(guided, logits[1] + 2 * (logits[0] - logits[1]), atol=1e-6)
        True
    """

    scale: float
    images_only: bool = False
    last_step: int | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        _check_finite(scale=self.scale)

    @property
    def num_streams(self) -> int:
        """Two."""
        return 2

    @property
    def scales(self) -> tuple[float, ...]:
        """One."""
        return (self.scale,)

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """``u + scale * (c - u)``."""
        if self.last_step is not None and step > self.last_step:
            return logits[0]
        if self.normalise:
            return _guided(logits, self.scale)
        conditional, unconditional = logits
        return unconditional + self.scale * (conditional - unconditional)


@dataclass(frozen=True, kw_only=True)
class ThreeWay:
    """Three streams: text and images, images alone, and nothing; each of the two conditions has a scale.

    ``n + image_scale * (i - n) + scale * (c - i)`` on log probabilities. Each stream has its own rows of the cache. Upstream's
    stores the second stream's cache in the third one's place, so that its third stream reads the second one's past, and does not
    hand on the scale of images, which is then 1. Its third stream forgets earlier images when a new one begins; ours keeps them.

    Args:
        scale: of the text.
        image_scale: of the reference images.
        images_only: leave text alone, as Emu3.5 does; see ``Guidance``.

    Source: ``no_text_img_cfg`` of Emu3.5 (arXiv 2510.26583; baaivision/Emu3.5).

    Examples:
        >>> import torch
        >>> from mmblocks.generation import ThreeWay
        >>> logits = torch.randn(3, 2, 8).log_softmax(dim=-1)  # text and images, images alone, nothing
        >>> guided = ThreeWay(scale=1.0, image_scale=1.0).combine(logits, step=0)
        >>> torch.allclose(guided, logits[0], atol=1e-6)
        True
    """

    scale: float
    image_scale: float
    images_only: bool = True

    def __post_init__(self) -> None:
        _check_finite(scale=self.scale, image_scale=self.image_scale)

    @property
    def num_streams(self) -> int:
        """Three."""
        return 3

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the text, then of the images."""
        return self.scale, self.image_scale

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """Both conditions, each exaggerated by its own scale."""
        everything, images, nothing = logits.log_softmax(dim=-1)
        return nothing + self.image_scale * (images - nothing) + self.scale * (everything - images)


@dataclass(frozen=True, kw_only=True)
class VisualContrastive:
    """Visual contrastive decoding: what a distorted image makes as likely is taken off; against hallucinated objects.

    The second stream is the same prompt with the image distorted (much noise, say) or left out.

    Args:
        alpha: how strongly the second stream is taken off.
        beta: ids whose probability is below ``beta`` times that of the likeliest are never sampled.

    Source: VCD (arXiv 2311.16922; DAMO-NLP-SG/VCD).

    Examples:
        >>> import torch
        >>> from mmblocks.generation import VisualContrastive
        >>> logits = torch.tensor([[[4.0, 3.9, -9.0]], [[4.0, 0.0, -9.0]]])  # with the image, and with a distorted one
        >>> guided = VisualContrastive(alpha=1.0, beta=0.1).combine(logits, step=0)
        >>> logits[0].argmax().item(), guided.argmax().item()
        (0, 1)
    """

    alpha: float = 1.0
    beta: float = 0.1
    images_only: bool = False

    def __post_init__(self) -> None:
        _check_finite(alpha=self.alpha)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; accepted: 0 to 1")

    @property
    def num_streams(self) -> int:
        """Two."""
        return 2

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """``(1 + alpha) * c - alpha * d`` where c itself finds the id plausible."""
        clear, distorted = logits
        implausible = clear < clear.amax(dim=-1, keepdim=True) + (math.log(self.beta) if self.beta else float("-inf"))
        return ((1 + self.alpha) * clear - self.alpha * distorted).masked_fill(implausible, float("-inf"))


@dataclass(frozen=True, kw_only=True)
class MutualInformation:
    """M3ID: the image's part in the prediction is raised, the more the longer the text, as its influence fades.

    The second stream is the same prompt without the image. Where the first is sure of an id, it decides alone.

    Args:
        forgetting: how fast the image is forgotten, per token; lambda in the paper.
        sure: probability from which on the first stream decides alone; alpha in the paper.

    Source: M3ID (arXiv 2403.14003).

    Examples:
        >>> import torch
        >>> from mmblocks.generation import MutualInformation
        >>> logits = torch.tensor([[[4.0, 3.9, -9.0]], [[4.0, 0.0, -9.0]]])  # with the image, and without
        >>> [MutualInformation().combine(logits, step).argmax().item() for step in (0, 20)]
        [0, 1]
    """

    forgetting: float = 0.02
    sure: float = 0.9
    images_only: bool = False

    def __post_init__(self) -> None:
        _check_finite(forgetting=self.forgetting)
        if self.forgetting < 0 or not 0 < self.sure <= 1:
            found = f"forgetting is {self.forgetting}, sure {self.sure}"
            raise ValueError(f"{found}; accepted: forgetting of 0 or more, sure above 0 and at most 1")

    @property
    def num_streams(self) -> int:
        """Two."""
        return 2

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """``c + (1 - w) / w * (c - u)`` with ``w = exp(-forgetting * (step + 1))``, where c is not sure."""
        seen, unseen = logits.log_softmax(dim=-1)
        raised = seen + math.expm1(self.forgetting * (step + 1)) * (seen - unseen)  # (1 - w) / w
        is_sure = seen.amax(dim=-1, keepdim=True) >= math.log(self.sure)
        return torch.where(is_sure, seen, raised)


@dataclass(frozen=True)
class Unguided:
    """One stream, taken as it is."""

    images_only: bool = False

    @property
    def num_streams(self) -> int:
        """One."""
        return 1

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """The only stream."""
        return logits[0]


@runtime_checkable
class VectorGuidance(Guidance, Protocol):
    """A guidance that also combines predictions of vectors: noise, velocities, latents."""

    @property
    def scales(self) -> tuple[float, ...]:
        """For each neighbouring pair of streams how far their difference is exaggerated, from the first pair on."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpanGuide:
    """What heads of whole spans are handed to combine the predictions of all streams.

    Args:
        guidance: how.
        writes: "ids" for logits; else vectors.
    """

    guidance: Guidance
    writes: str

    def __post_init__(self) -> None:
        vectors = isinstance(self.guidance, VectorGuidance | TimedGuidance)
        if self.writes != "ids" and self.guidance.num_streams > 1 and not vectors:
            found = f"guidance is a {type(self.guidance).__name__}, and a head writes {self.writes}"
            raise ValueError(f"{found}; accepted: one with scales, such as ClassifierFree or ThreeWay")

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance's scales; none where there is one stream, or where it has none."""
        return self.guidance.scales if isinstance(self.guidance, VectorGuidance) else ()

    def __call__(
        self,
        predictions: Float[Tensor, "G N X"],
        strength: float = 1.0,
        *,
        time: float | None = None,
        counts: Sequence[int] | None = None,
    ) -> Float[Tensor, "N X"]:
        """The guided prediction, or for a strength below 1 one between it and the first stream's.

        Args:
            predictions: of all streams.
            strength: see above.
            time: what the network was told, of heads that write along a path.
            counts: tokens of each span, of the same.

        Raises:
            ValueError: a ``TimedGuidance`` of a head without times.
        """
        first = predictions[0]
        if len(predictions) == 1 or strength == 0:
            return first
        if self.writes != "ids" and isinstance(self.guidance, TimedGuidance):
            if time is None or counts is None or strength != 1:
                name = type(self.guidance).__name__
                raise ValueError(f"guidance is a {name}, which asks for times; accepted: with a head of a path, SpanDenoisingHead")
            return self.guidance.guided(predictions, time, counts)
        by_ids = self.writes == "ids"
        guided = self.guidance.combine(predictions, 0) if by_ids else exaggerated(list(predictions), self.scales)
        return guided if strength == 1 else first + strength * (guided - first)


def as_guidance(guidance: "float | Guidance | None") -> "Guidance":
    """A number is the scale of classifier-free guidance, None is none."""
    if guidance is None:
        return Unguided()
    return ClassifierFree(scale=guidance) if isinstance(guidance, int | float) else guidance
