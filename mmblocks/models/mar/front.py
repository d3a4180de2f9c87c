"""MAR's front: images of classes, in random order."""

from dataclasses import dataclass

from PIL.Image import Image as PILImage
from torch import Generator

from mmblocks.models.class_fronts import ClassFront, check_guidance, labels_of, model_of, pictures_of
from mmblocks.models.mar.model import MAR
from mmblocks.prompts.fronts import image_tokenizer_of
from mmblocks.prompts.request import Components
from mmblocks.roles import Head, check_role


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
        check_guidance(self.guidance, 1)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of the tokens that the head makes of states."""
        model = model_of(components, MAR)
        tokens = model.sample(
            _head(components),
            labels_of(components, self.label),
            num_steps=self.num_steps,
            guidance=self.guidance,
            schedule="linear" if self.growing else "constant",
            generator=generator,
            temperature=self.temperature,
        )
        return pictures_of(components, model.to_latents(tokens))


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
        return model_of(components, MAR).num_classes

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


def _head(components: Components) -> Head:
    if components.decoder is None:
        raise ValueError("decoder is None; accepted of this front: the per-token head, Pipeline(..., decoder=...)")
    check_role(components.decoder, Head, "decoder")
    return components.decoder  # type: ignore[return-value]  # as was checked
