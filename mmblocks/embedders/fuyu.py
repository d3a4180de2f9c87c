"""Fuyu's patch embedding: one linear map of patches, and no encoder.

Shapes: H and W pixels, N tokens of all images, D width of the trunk.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.image_tokens import Images, check_images, grid_layout, grid_of, pack, sizes
from mmblocks.layers.pixels import normalise, pixels_of
from mmblocks.layers.resizing import fit_within, upright_rgb
from mmblocks.pickling import weightless
from mmblocks.tokens import ImageLayout, VisionTokens

_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation."""

_FILL = 1 / 255
"""Of the border that completes the last patches. Published code means white by 1, and writes it before it divides by 255."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels is {config['num_channels']}; accepted: 3")
    text = config.get("text_config") or config
    return {"dim": text["hidden_size"] if "hidden_size" in text else config["hidden_size"], "patch_size": config["patch_size"]}


class FuyuPatchEmbedding(Block):
    """A linear map of patches, whose values are read row by row and colour last.

    A row of patches is closed by a token of the text's vocabulary, ``|NEWLINE|`` (id 71019 in fuyu-8b). Its vector belongs to the
    text embedding, and is handed in; or the rows are made one by one, and the id is written between them as text.

    Args:
        dim: D.
        patch_size: pixels a side of a patch.
        max_height, max_width: into which ``preprocess`` fits an image.

    Source: Fuyu-8B (adept/fuyu-8b; huggingface/transformers).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "fuyu",
            (Rule("model.vision_embed_tokens.*", "linear.*"),),
            ignored=("model.language_model.*", "lm_head.weight"),
            config=_config,
        ),
        Layout("fuyu-hub", (Rule("vision_embed_tokens.*", "linear.*"),), ignored=("language_model.*",), config=_config),
    )

    def __init__(self, *, dim: int, patch_size: int = 30, max_height: int = 1080, max_width: int = 1920) -> None:
        super().__init__()
        self.dim = dim
        self.patch_size = patch_size
        self.max_height = max_height
        self.max_width = max_width
        self.linear = nn.Linear(3 * patch_size**2, dim)

    def forward(self, images: Images, newline: Float[Tensor, " D"] | None = None) -> VisionTokens:
        """Images with pixels in [0, 1] and sides that are multiples of ``patch_size``, each of its own size.

        Args:
            images: the images.
            newline: the vector that closes each row; None for patches alone.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, a size that is no multiple, or pixels that are no RGB in [0, 1].
        """
        images = check_images(images, self.linear.weight.dtype)
        return self.embed([normalise(image, _HALF, _HALF) for image in images], newline)

    def embed(self, values: Sequence[Float[Tensor, "3 _ _"]], newline: Float[Tensor, " D"] | None = None) -> VisionTokens:
        """The tokens of images that are normalised already."""
        layouts = [self.layout(*size, newline=newline is not None) for size in sizes(values)]
        sides = {"p": self.patch_size, "q": self.patch_size}
        patches = torch.cat([rearrange(image, "c (h p) (w q) -> (h w) (p q c)", **sides) for image in values])
        return pack(layouts, self.linear(patches.to(self.linear.weight)), newline=newline)

    @weightless
    def layout(self, height: int, width: int, *, newline: bool = False) -> ImageLayout:
        """The tokens of an image of this size, with or without those that close its rows.

        Raises:
            ValueError: if a side is no positive multiple of ``patch_size``.
        """
        return grid_layout(*grid_of(height, width, self.patch_size), newline=newline)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Shrinks (bilinear) to fit into ``max_height`` x ``max_width``, and fills up to whole patches at the right and the bottom.

        Raises:
            ValueError: an image without pixels.

        Source: ``FuyuImageProcessor`` of huggingface/transformers, whose padding of whole patches is not made.
        """
        image = upright_rgb(image)
        height, width = fit_within(image.height, image.width, max_height=self.max_height, max_width=self.max_width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), PILImage.Resampling.BILINEAR)
        rows, columns = (math.ceil(side / self.patch_size) for side in (height, width))
        canvas = torch.full((3, rows * self.patch_size, columns * self.patch_size), _FILL)
        canvas[:, :height, :width] = pixels_of(image)
        return canvas
