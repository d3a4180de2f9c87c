"""ACDiT's front: images of classes, block after block."""

from dataclasses import dataclass

from einops import rearrange
from PIL.Image import Image as PILImage
from torch import Generator

from mmblocks.models.acdit.model import ACDiT
from mmblocks.models.class_fronts import ClassFront, check_guidance, labels_of, model_of, pictures_of
from mmblocks.prompts.fronts import image_tokenizer_of
from mmblocks.prompts.request import Components


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
        check_guidance(self.guidance, 1)

    def draw(self, components: Components, generator: Generator) -> list[PILImage]:
        """The image of all blocks, each denoised after those before it."""
        model, labels = model_of(components, ACDiT), labels_of(components, self.label)
        blocks = model.sample(labels, num_steps=self.num_steps, guidance=self.guidance, generator=generator)
        sides = {"p": self.patch_size, "q": self.patch_size}
        return pictures_of(components, rearrange(model.blocks.join(blocks), "b h w (p q c) -> b (h p) (w q) c", **sides))


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
        return model_of(components, ACDiT).num_classes

    def of_class(self, components: Components, label: int) -> ACDiTDrawing:
        """An image of that class."""
        if model_of(components, ACDiT).blocks.grid[0] != 1:
            raise ValueError(f"the model makes {model_of(components, ACDiT).blocks.grid[0]} frames; accepted: a model of images")
        image_tokenizer_of(components)
        return ACDiTDrawing(label=label, guidance=self.guidance, num_steps=self.num_steps, patch_size=self.patch_size)
