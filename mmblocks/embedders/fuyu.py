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
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.preprocessing import Preprocessor, check_processor, normalisation, published_normalisation
from mmblocks.checkpoints.layouts.published_config import check_model, only, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.image_tokens import Images, check_images, grid_layout, grid_of, pack, sizes
from mmblocks.layers.images.pixels import normalise, pixels_of
from mmblocks.layers.images.resizing import fit_within, upright_rgb
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless

_FILL = 1 / 255
"""Of the border that completes the last patches. Published code means white by 1, and writes it before it divides by 255."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Newer files have the width in the config of the text, older ones at the top, both as 4096 where they do not say it."""
    check_model(config, "fuyu")
    only(config, "num_channels", 3)
    text = stated(config, "text_config", {})
    dim = stated(text, "hidden_size", stated(config, "hidden_size", 4096))
    return {"dim": dim, "patch_size": config.get("patch_size", 30)}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    return {
        "model_type": "fuyu",
        "architectures": ["FuyuForCausalLM"],
        "patch_size": arguments["patch_size"],
        "num_channels": 3,
        "hidden_size": arguments["dim"],
        "text_config": {"model_type": "persimmon", "hidden_size": arguments["dim"], "num_attention_heads": 1},
    }


def _images(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    check_processor(entries, "FuyuImageProcessor")
    only(entries, "do_resize", True)
    only(entries, "resample", PILImage.Resampling.BILINEAR)
    only(entries, "do_pad", True)
    only(entries, "padding_mode", "constant")
    only(entries, "padding_value", 1.0)
    patch = stated(entries, "patch_size", {})
    for side in ("height", "width"):
        only(patch, side, arguments["patch_size"])
    # The first files say it in two entries.
    size = stated(entries, "size", {})
    height = stated(size, "height", stated(entries, "target_height", 1080))
    width = stated(size, "width", stated(entries, "target_width", 1920))
    only(entries, "target_height", height)
    only(entries, "target_width", width)
    return {"max_height": height, "max_width": width, **normalisation(entries)}


def _published_images(arguments: Arguments) -> dict[str, Any]:
    return {
        "image_processor_type": "FuyuImageProcessor",
        "do_resize": True,
        "size": {"height": arguments["max_height"], "width": arguments["max_width"]},
        "resample": int(PILImage.Resampling.BILINEAR),
        "do_pad": True,
        "padding_value": 1.0,
        "padding_mode": "constant",
        "patch_size": {"height": arguments["patch_size"], "width": arguments["patch_size"]},
        **published_normalisation(arguments["mean"], arguments["std"]),
    }


_HARMLESS = (
    *(*LANGUAGE_MODEL, "text_config.*", "image_size", "image_token_id", "layer_norm_eps", "qk_layernorm"),
    "_vocab_size",  # of transformers 5.0
)
"""Of the language model. Images have any size."""


def _layout(name: str, prefix: str, *ignored: str) -> Layout:
    return Layout(
        name,
        (Rule(f"{prefix}vision_embed_tokens.*", "linear.*"),),
        ignored=(f"{prefix}language_model.*", *ignored),
        config=_config,
        published_config=_published_config,
        harmless=_HARMLESS,
        preprocessor=Preprocessor(_images, _published_images, ("debug", "num_additional_image_tokens")),
    )


class FuyuPatchEmbedding(Block):
    """A linear map of patches, whose values are read row by row and colour last.

    A row of patches is closed by a token of the text's vocabulary, ``|NEWLINE|`` (id 71019 in fuyu-8b). Its vector belongs to the
    text embedding, and is handed in; or the rows are made one by one, and the id is written between them as text.

    Args:
        dim: D.
        patch_size: pixels a side of a patch.
        max_height, max_width: into which ``preprocess`` fits an image.
        mean, std: what pixels are normalised with.

    Source: Fuyu-8B (adept/fuyu-8b; huggingface/transformers).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import FuyuPatchEmbedding
        >>> embedder = FuyuPatchEmbedding(dim=8)
        >>> images = [torch.rand(3, 60, 90)]
        >>> tuple(embedder(images).embeds.shape), tuple(embedder(images, newline=torch.zeros(8)).embeds.shape)
        ((6, 8), (8, 8))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        _layout("fuyu", "model.", "lm_head.weight"),
        _layout("fuyu-hub", ""),
    )

    def __init__(
        self,
        *,
        dim: int,
        patch_size: int = 30,
        max_height: int = 1080,
        max_width: int = 1920,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
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
        return self.embed([normalise(image, self.mean, self.std) for image in images], newline)

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
