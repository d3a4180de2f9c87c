"""EVEv2's patch stem: an image straight to a language model's tokens, with two convolutions and no encoder.

Shapes: H and W pixels, h and w tokens, N tokens of all images, D width of the trunk.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.pixels import normalise, pixels_of
from mmblocks.tokens import ImageLayout, TokenKind, VisionTokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv2's config. The strides are not in it: they are those of the published preprocessor preset."""
    return {"dim": config["hidden_size"], "hidden_dim": config["mm_hidden_size"]}


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
            ValueError: no image, or a size that is no multiple.
        """
        if not images:
            raise ValueError("images is empty; accepted: at least one")
        layouts = [self.layout(*image.shape[-2:]) for image in images]
        device = self.class_token.device
        number = torch.cat([torch.full((len(layout.kind),), n) for n, layout in enumerate(layouts)])
        return VisionTokens(
            embeds=torch.cat(self._embed(images)),
            image=number.to(device),
            grid=torch.cat([layout.grid for layout in layouts]).to(device),
            kind=torch.cat([layout.kind for layout in layouts]).to(device),
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
        rows, columns = height // size, width // size
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns + 1), indexing="ij")
        body = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
        kind = torch.where(body[:, 2] == columns, int(TokenKind.NEWLINE), int(TokenKind.PATCH))
        return ImageLayout(
            grid=torch.cat([torch.zeros(1, 3, dtype=torch.long), body]),
            kind=torch.cat([torch.tensor([int(TokenKind.CLASS)]), kind]),
        )

    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes to an area of about ``max_size`` squared, each side rounded up to a multiple of ``token_size``.

        Source: ``process_images`` of baaivision/EVE (EVEv2); enlarges small images too.
        """
        width, height = image.size
        scale = math.sqrt(width * height) / self.max_size
        size = self.token_size
        new_width, new_height = (max(math.ceil(side / scale / size) * size, size) for side in (width, height))
        return pixels_of(image.convert("RGB").resize((new_width, new_height)))

    def _embed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Each image's tokens; images of one size share the convolutions."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(tuple(image.shape[-2:]), []).append(number)
        tokens: list[Tensor] = [torch.empty(0)] * len(images)
        for numbers in by_size.values():
            pixels = torch.stack([images[number] for number in numbers]).to(self.class_token)
            features = self.merge(nn.functional.gelu(self.patch(normalise(pixels, CLIP_MEAN, CLIP_STD))))
            for number, rows in zip(numbers, features.permute(0, 2, 3, 1), strict=True):
                split = self.split_token.expand(rows.shape[0], 1, -1)
                tokens[number] = torch.cat([self.class_token[None], torch.cat([rows, split], dim=1).flatten(0, 1)])
        return tokens
