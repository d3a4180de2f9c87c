"""VAR's front: images of classes, scale by scale."""

from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image as PILImage
from torch import Generator

from mmblocks.layers.categorical import Sampling
from mmblocks.models.class_fronts import ClassFront, check_guidance, image_tokenizer_as, labels_of, model_of
from mmblocks.models.var.model import VARImageModel
from mmblocks.models.var.transformer import VAR
from mmblocks.prompts.fronts import frames_of
from mmblocks.prompts.request import Components
from mmblocks.tokenizers.var.tokenizer import VARVQ


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
        check_guidance(self.guidance, 0)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of the codes of all scales."""
        whole = VARImageModel(tokenizer=image_tokenizer_as(components, VARVQ), trunk=model_of(components, VAR))
        settings: dict[str, Any] = {"guidance": self.guidance, "sampling": self.sampling, "smooth": self.smooth}
        (pixels,) = whole.eval().generate(labels_of(components, self.label), generator=generator, **settings)
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
        return model_of(components, VAR).num_classes

    def of_class(self, components: Components, label: int) -> VARDrawing:
        """An image of that class."""
        image_tokenizer_as(components, VARVQ)
        return VARDrawing(label=label, guidance=self.guidance, sampling=self.sampling, smooth=self.smooth)
