"""Fronts of models that make images of classes: LlamaGen, VAR, MAR and ACDiT. They read no text."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from einops import rearrange
from PIL.Image import Image as PILImage
from torch import Generator, Tensor, nn

from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.guidance import ClassifierFree, Guidance
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.models.acdit.model import ACDiT
from mmblocks.models.llamagen import LlamaGen
from mmblocks.models.llamagen import label as label_segment
from mmblocks.models.mar.model import MAR
from mmblocks.models.var.model import VARImageModel
from mmblocks.models.var.transformer import VAR
from mmblocks.prompts.classes import IMAGENET, class_index
from mmblocks.prompts.fronts import decoded, frames_of, image_tokenizer_of
from mmblocks.prompts.request import Components, Drawing, Request
from mmblocks.roles import Head, check_role
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.var.tokenizer import VARVQ
from mmblocks.vocabulary.grid_format import raster_format

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ClassFront:
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

    def num_classes(self, components: Components) -> int:
        """Classes of the model, that for none apart."""
        raise NotImplementedError

    def of_class(self, components: Components, label: int) -> Request | Drawing:
        """An image of that class."""
        raise NotImplementedError


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
        return int(_model(components, LlamaGen).config["num_classes"])

    def of_class(self, components: Components, label: int) -> Request:
        """A class, and the codes after it."""
        model = _model(components, LlamaGen)
        grammar = GridGrammar(raster_format(*self.grid, int(model.config["vocab_size"])))
        options = Generation(sampling=self.sampling, guidance=self.guidance, input="code")
        return Request([label_segment(label)], grammar, options, ([label_segment(self.num_classes(components))],))

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)


LLAMAGEN_384_FRONT = LlamaGenFront(image_size=(384, 384), grid=(24, 24))
"""LlamaGen of 384 x 384 pixels."""


@dataclass(frozen=True, kw_only=True)
class VARDrawing:
    """An image by VAR.

    Attributes:
        label: the class.
        guidance, sampling, smooth: see ``VARFront``.

    Raises:
        ValueError: a guidance below 0.
    """

    label: int
    guidance: float
    sampling: Sampling
    smooth: bool

    def __post_init__(self) -> None:
        _check_guidance(self.guidance, 0)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of the codes of all scales."""
        whole = VARImageModel(tokenizer=_tokenizer(components, VARVQ), trunk=_model(components, VAR))
        settings: dict[str, Any] = {"guidance": self.guidance, "sampling": self.sampling, "smooth": self.smooth}
        (pixels,) = whole.eval().generate(_labels(components, self.label), generator=generator, **settings)
        return frames_of(pixels)


@dataclass(frozen=True, kw_only=True)
class VARFront(ClassFront):
    """VAR: an image's codes scale by scale. The image tokenizer is a ``VARVQ``.

    Attributes:
        guidance: see ``VAR.sample``; 0 for none.
        sampling: of codes.
        smooth: see ``VAR.sample``.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR), the settings of its demo.

    Examples:
        >>> from mmblocks.models import VARFront
        >>> VARFront().sampling.top_k
        900
    """

    guidance: float = 4.0
    sampling: Sampling = field(default_factory=lambda: Sampling(top_k=900, top_p=0.95))
    smooth: bool = False

    def num_classes(self, components: Components) -> int:
        """Classes of the model."""
        return _model(components, VAR).num_classes

    def of_class(self, components: Components, label: int) -> VARDrawing:
        """An image of that class."""
        _tokenizer(components, VARVQ)
        return VARDrawing(label=label, guidance=self.guidance, sampling=self.sampling, smooth=self.smooth)


@dataclass(frozen=True, kw_only=True)
class MARDrawing:
    """An image by MAR.

    Attributes:
        label: the class.
        guidance, num_steps, growing, temperature: see ``MARFront``.

    Raises:
        ValueError: a guidance below 1.
    """

    label: int
    guidance: float
    num_steps: int
    growing: bool
    temperature: float

    def __post_init__(self) -> None:
        _check_guidance(self.guidance, 1)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of the tokens that the head makes of states."""
        model = _model(components, MAR)
        tokens = model.sample(
            _head(components),
            _labels(components, self.label),
            num_steps=self.num_steps,
            guidance=self.guidance,
            schedule="linear" if self.growing else "constant",
            generator=generator,
            temperature=self.temperature,
        )
        return _pictures(components, model.to_latents(tokens))


@dataclass(frozen=True, kw_only=True)
class MARFront(ClassFront):
    """MAR: an image's tokens in random order. The pipeline's ``decoder`` is the per-token head, which makes tokens of states.

    Attributes:
        guidance: scale; 1 for none.
        growing: whether it grows with the share of tokens that are known.
        num_steps: steps, at most as many as there are tokens.
        temperature: of the head's noise.

    Source: MAR (arXiv 2406.11838; LTH14/mar), the settings of its demo; its evaluation takes 256 steps with a growing guidance of
    2.9 (MAR-B), 3.0 (L) or 3.2 (H).

    Examples:
        >>> from mmblocks.models import MARFront
        >>> MARFront(num_steps=256, guidance=3.0, growing=True).temperature
        1.0
    """

    guidance: float = 4.0
    growing: bool = False
    num_steps: int = 64
    temperature: float = 1.0

    def num_classes(self, components: Components) -> int:
        """Classes of the model."""
        return _model(components, MAR).num_classes

    def of_class(self, components: Components, label: int) -> MARDrawing:
        """An image of that class."""
        _head(components)
        image_tokenizer_of(components)
        return MARDrawing(
            label=label,
            guidance=self.guidance,
            num_steps=self.num_steps,
            growing=self.growing,
            temperature=self.temperature,
        )


@dataclass(frozen=True, kw_only=True)
class ACDiTDrawing:
    """An image by ACDiT.

    Attributes:
        label: the class.
        guidance, num_steps, patch_size: see ``ACDiTFront``.

    Raises:
        ValueError: a guidance below 1.
    """

    label: int
    guidance: float
    num_steps: int
    patch_size: int

    def __post_init__(self) -> None:
        _check_guidance(self.guidance, 1)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of all blocks, each denoised after those before it."""
        model, labels = _model(components, ACDiT), _labels(components, self.label)
        blocks = model.sample(labels, num_steps=self.num_steps, guidance=self.guidance, generator=generator)
        sides = {"p": self.patch_size, "q": self.patch_size}
        return _pictures(components, rearrange(model.blocks.join(blocks), "b h w (p q c) -> b (h p) (w q) c", **sides))


@dataclass(frozen=True, kw_only=True)
class ACDiTFront(ClassFront):
    """ACDiT of images: block after block, each by diffusion.

    Attributes:
        guidance: scale; 1 for none.
        num_steps: of each block.
        patch_size: latents a side of a token.

    Source: ACDiT (arXiv 2412.07720; thunlp/ACDiT), the settings of its script, whose autoencoder is DiT's.

    Examples:
        >>> from mmblocks.models import ACDiTFront
        >>> ACDiTFront().guidance
        1.5
    """

    guidance: float = 1.5
    num_steps: int = 25
    patch_size: int = 1

    def num_classes(self, components: Components) -> int:
        """Classes of the model."""
        return _model(components, ACDiT).num_classes

    def of_class(self, components: Components, label: int) -> ACDiTDrawing:
        """An image of that class."""
        if _model(components, ACDiT).blocks.grid[0] != 1:
            raise ValueError(f"the model makes {_model(components, ACDiT).blocks.grid[0]} frames; accepted: a model of images")
        image_tokenizer_of(components)
        return ACDiTDrawing(label=label, guidance=self.guidance, num_steps=self.num_steps, patch_size=self.patch_size)


def _model(components: Components, kind: type[M]) -> M:
    if not isinstance(components.model, kind):
        raise TypeError(f"model is a {type(components.model).__name__}; accepted of this front: a {kind.__name__}")
    return components.model


def _tokenizer(components: Components, kind: type[M]) -> M:
    found = components.image_tokenizer
    if not isinstance(found, kind):
        raise TypeError(f"image_tokenizer is a {type(found).__name__}; accepted of this front: a {kind.__name__}")
    return found


def _head(components: Components) -> Head:
    if components.decoder is None:
        raise ValueError("decoder is None; accepted of this front: the per-token head, Pipeline(..., decoder=...)")
    check_role(components.decoder, Head, "decoder")
    return components.decoder  # type: ignore[return-value]  # as was checked


def _labels(components: Components, label: int) -> Tensor:
    return torch.tensor([label], device=next(components.model.parameters()).device)


@torch.no_grad()
def _pictures(components: Components, latents: Tensor) -> list[PILImage]:
    return frames_of(image_tokenizer_of(components).decode(Latents(z=latents))[0])


def _check_guidance(guidance: float, least: int) -> None:
    if not guidance >= least:
        raise ValueError(f"guidance is {guidance}; accepted: {least} for none, or more")
