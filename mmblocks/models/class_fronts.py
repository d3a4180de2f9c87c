"""Fronts of models that make images of classes, which read no text: what they share, and LlamaGen's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn

from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.guidance import ClassifierFree, Guidance
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.models.llamagen import LlamaGen
from mmblocks.models.llamagen import label as label_segment
from mmblocks.prompts.classes import IMAGENET, class_index
from mmblocks.prompts.fronts import decoded, frames_of, image_tokenizer_of
from mmblocks.prompts.request import Components, Drawing, Request
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.tokens import Latents
from mmblocks.vocabulary.grid_format import raster_format

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ClassFront(ABC):
    """What fronts of models that make images of classes share.

    Attributes:
        classes: their names by number, several of one class with ", " between them, or "imagenet-1k".
        image_size: (height, width) in pixels of all images.
    """

    classes: str | tuple[str, ...] = IMAGENET
    image_size: tuple[int, int] = (256, 256)

    def generate_image(
        self, components: Components, prompt: str | int, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request | Drawing:
        """An image of a class, which is told by its number or a name of it."""
        if size not in (None, tuple(self.image_size)):
            raise ValueError(f"size is {size}; accepted of this model: {tuple(self.image_size)}")
        if negative_prompt:
            raise ValueError("negative_prompt is given; accepted of this model: None, since it reads no text")
        return self.of_class(components, class_index(prompt, self.classes, self.num_classes(components)))

    @abstractmethod
    def num_classes(self, components: Components) -> int:
        """Classes of the model, that for none apart."""

    @abstractmethod
    def of_class(self, components: Components, label: int) -> Request | Drawing:
        """An image of that class."""


@dataclass(frozen=True, kw_only=True)
class LlamaGenFront(ClassFront):
    """LlamaGen of classes: an image's codes row by row.

    Attributes:
        grid: (rows, columns) of codes.
        guidance: how classes are guided.
        sampling: of codes.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen).

    Examples:
        >>> from mmblocks.models import LlamaGenFront
        >>> LlamaGenFront(image_size=(384, 384), grid=(24, 24)).sampling.top_k
        2000
    """

    grid: tuple[int, int] = (16, 16)
    guidance: Guidance = field(default_factory=lambda: ClassifierFree(scale=4.0, normalise=False))
    sampling: Sampling = field(default_factory=lambda: Sampling(top_k=2000))

    def num_classes(self, components: Components) -> int:
        """Classes of the model."""
        return int(model_of(components, LlamaGen).config["num_classes"])

    def of_class(self, components: Components, label: int) -> Request:
        """A class, and the codes after it."""
        model = model_of(components, LlamaGen)
        grammar = GridGrammar(raster_format(*self.grid, int(model.config["vocab_size"])))
        options = Generation(sampling=self.sampling, guidance=self.guidance, input="code")
        return Request([label_segment(label)], grammar, options, ([label_segment(self.num_classes(components))],))

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)


LLAMAGEN_384_FRONT = LlamaGenFront(image_size=(384, 384), grid=(24, 24))
"""LlamaGen of 384 x 384 pixels."""


def model_of(components: Components, kind: type[M]) -> M:
    """The model, which has to be of this class."""
    if not isinstance(components.model, kind):
        raise TypeError(f"model is a {type(components.model).__name__}; accepted of this front: a {kind.__name__}")
    return components.model


def image_tokenizer_as(components: Components, kind: type[M]) -> M:
    """The image tokenizer, which has to be of this class."""
    found = components.image_tokenizer
    if not isinstance(found, kind):
        raise TypeError(f"image_tokenizer is a {type(found).__name__}; accepted of this front: a {kind.__name__}")
    return found


def labels_of(components: Components, label: int) -> Tensor:
    """The class, where the model is."""
    return torch.tensor([label], device=next(components.model.parameters()).device)


@torch.no_grad()
def pictures_of(components: Components, latents: Tensor) -> list[PILImage]:
    """The picture of a tokenizer's latents."""
    return frames_of(image_tokenizer_of(components).decode(Latents(z=latents))[0])


def check_guidance(guidance: float, least: int) -> None:
    """Refuses a smaller guidance."""
    if not guidance >= least:
        raise ValueError(f"guidance is {guidance}; accepted: {least} for none, or more")
