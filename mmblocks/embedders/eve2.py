"""EVEv2's patch stem: an image straight to a language model's tokens, with two convolutions and no encoder.

Shapes: H and W pixels, h and w tokens, N tokens of all images, D width of the trunk.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.pixels import CLIP_MEAN, CLIP_STD, check_pixels, normalise, pixels_of
from mmblocks.tokens import ImageLayout, TokenKind, VisionTokens


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv2's config. The strides are not in it: they are those of the published preprocessor preset."""
    return {"dim": config["hidden_size"], "hidden_dim": config["mm_hidden_size"]}


def _layout(rows: int, columns: int) -> ImageLayout:
    """A class token, then rows of patches, each closed by a split token."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns + 1), indexing="ij")
    body = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
    kind = torch.where(body[:, 2] == columns, int(TokenKind.NEWLINE), int(TokenKind.PATCH))
    return ImageLayout(
        grid=torch.cat([torch.zeros(1, 3, dtype=torch.long), body]),
        kind=torch.cat([torch.tensor([int(TokenKind.CLASS)]), kind]),
    )


class EVE2PatchEmbedding(Block):
    """Convolution, GELU, convolution; a class token opens each image and a split token closes each row.

    An image of H x W pixels becomes ``1 + h * (w + 1)`` tokens, ``h = H / (patch_size * merge_size)``.

    Args:
        dim: width of the trunk.
        hidden_dim: width between the two convolutions.
        patch_size: pixels a side of the first convolution's patches.
        merge_size: patches a side that the second convolution merges into a token.
        max_size: square root of the area, in pixels, to which ``preprocess`` brings an image (800 or 1600 in EVEv2).

    Source: EVEv2 (arXiv 2502.06788; baaivision/EVE).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "eve2",
            (
                Rule("model.vision_tower.patch_embedding.0.*", "patch.*"),
                Rule("model.vision_tower.patch_embedding.2.*", "merge.*"),
                Rule("model.vision_tower.class_embedding", "class_token"),
                Rule("model.vision_tower.split_embedding", "split_token"),
            ),
            ignored=("model.layers.*", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
            config=_config,
        ),
    )

    def __init__(
        self, *, dim: int, hidden_dim: int = 1024, patch_size: int = 16, merge_size: int = 2, max_size: int = 1600
    ) -> None:
        super().__init__()
        self.dim = dim
        self.max_size = max_size
        self.token_size = patch_size * merge_size
        self.patch = nn.Conv2d(3, hidden_dim, patch_size, patch_size)
        self.merge = nn.Conv2d(hidden_dim, dim, merge_size, merge_size)
        self.class_token = nn.Parameter(torch.empty(dim).normal_(std=dim**-0.5))
        self.split_token = nn.Parameter(torch.empty(dim).normal_(std=dim**-0.5))

    def forward(self, images: Sequence[Float[Tensor, "3 _ _"]]) -> VisionTokens:
        """Images with pixels in [0, 1] and sides that are multiples of ``token_size``, each of its own size.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, a size that is no multiple, or pixels that are no RGB in [0, 1].
        """
        if not images:
            raise ValueError("images is empty; accepted: at least one")
        for image in images:
            check_pixels(image, num_axes=3)
        layouts = [self.layout(*image.shape[-2:]) for image in images]
        kind = torch.cat([layout.kind for layout in layouts])
        number = torch.cat([torch.full_like(layout.kind, number) for number, layout in enumerate(layouts)])
        device = self.class_token.device
        return VisionTokens(
            embeds=self._with_class_and_split_tokens(self._patch_tokens(images), kind.to(device)),
            image=number.to(device),
            grid=torch.cat([layout.grid for layout in layouts]).to(device),
            kind=kind.to(device),
        )

    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: if a side is no positive multiple of ``token_size``.
        """
        size = self.token_size
        if height <= 0 or width <= 0 or height % size or width % size:
            near = tuple(max(round(side / size), 1) * size for side in (height, width))
            raise ValueError(
                f"image is {height}x{width}; accepted: multiples of {size}, such as {near[0]}x{near[1]} (see preprocess)"
            )
        return _layout(height // size, width // size)

    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes to an area of about ``max_size`` squared, each side rounded up to a multiple of ``token_size``.

        Source: ``process_images`` of baaivision/EVE (EVEv2); enlarges small images too.
        """
        width, height = image.size
        scale = math.sqrt(width * height) / self.max_size
        size = self.token_size
        new_width, new_height = (max(math.ceil(side / scale / size) * size, size) for side in (width, height))
        return pixels_of(image.convert("RGB").resize((new_width, new_height)))

    def _patch_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """The patch tokens (N, D) of all images.

        Both convolutions have the stride of their kernel, so each is a linear map of patches, and images of any size
        go through it together.
        """
        size = {"p": self.patch.kernel_size[0], "q": self.patch.kernel_size[1]}
        merge = {"m": self.merge.kernel_size[0], "n": self.merge.kernel_size[1]}
        patches = torch.cat(
            [
                rearrange(normalise(image, CLIP_MEAN, CLIP_STD), "c (h m p) (w n q) -> (h w) (m n) (c p q)", **size, **merge)
                for image in images
            ]
        )
        hidden = gelu(linear(patches.to(self.class_token), self.patch.weight.flatten(1), self.patch.bias))
        return linear(hidden.flatten(1), rearrange(self.merge.weight, "d c m n -> d (m n c)"), self.merge.bias)

    def _with_class_and_split_tokens(self, patch_tokens: Tensor, kind: Tensor) -> Tensor:
        """Puts the class and split token where a layout has them."""
        is_patch = kind == int(TokenKind.PATCH)  # int: torch.compile does not compare with enum members
        source = torch.where(is_patch, is_patch.cumsum(0) + 1, (kind == int(TokenKind.NEWLINE)).long())
        return torch.cat([torch.stack([self.class_token, self.split_token]), patch_tokens]).index_select(0, source)
