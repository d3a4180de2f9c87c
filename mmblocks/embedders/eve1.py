"""EVEv1's patch embedding layer: patches attended to in small windows, and read by a class token, and no encoder.

Shapes: H and W pixels, S pixels a side of a canvas, P patch tokens and N tokens of all images, B images, C cells (patches) of a
window, E width inside, D width of the trunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict, Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.embedders.eve1_layout import EVE1_LAYOUTS
from mmblocks.layers.images.image_tokens import Images, check_images, grid_layout, grid_of, pack, sizes
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, normalise, pixels_of
from mmblocks.layers.images.resizing import Box, CanvasPlacement, on_canvas, place_on_canvas, upright_rgb, valid_cells
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless

Mask = Float[Tensor, "_ _"] | Bool[Tensor, "_ _"]
"""Of a canvas: 1 where it shows its image, 0 elsewhere."""

_DUMMY_CELLS = 16
"""Patches a side that are read of a canvas that shows nothing, at most: what text-only rows carry in published training."""


class EVE1ImageArguments(TypedDict, total=False):
    """The arguments of ``EVE1Images``, for the signatures of classes that pass them on."""

    patch_size: int
    merge_size: int
    projector_layers: int
    image_size: int
    teacher_image_size: int
    teacher_patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class EVE1Images:
    """How EVEv1 reads images: the arguments that ``EVE1PatchEmbedding`` and ``EVE1`` share.

    Attributes:
        patch_size: pixels a side of a patch.
        merge_size: patches a side of a window.
        projector_layers: linear layers of the projector, with GELUs between them.
        image_size: pixels of the longer side after ``preprocess``: 672, or 1344 in EVE-7B-HD.
        teacher_image_size, teacher_patch_size: of the encoder whose cells the shorter side is rounded up to.
        mean, std: what pixels are normalised with; the mean is the colour around an image on its canvas, too.

    Raises:
        ValueError: an ``image_size`` that is no multiple of the teacher's.
    """

    patch_size: int = 14
    merge_size: int = 2
    projector_layers: int = 2
    image_size: int = 672
    teacher_image_size: int = 336
    teacher_patch_size: int = 14
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.image_size % self.teacher_image_size or self.image_size <= 0:
            accepted = f"multiples of teacher_image_size, {self.teacher_image_size}"
            raise ValueError(f"image_size is {self.image_size}; accepted: {accepted}")


class EVE1PatchEmbedding(Block):
    """Patches of which each window becomes one token, and a class token that has read them all; then a projector.

    A window's token is the mean of its patches plus what that mean finds in them by attention. The class token opens an image and
    a split token closes each row: an image of H x W pixels becomes ``1 + h * (w + 1)`` tokens, ``h = H / token_size``.

    Args:
        dim: D.
        hidden_dim: E.
        num_heads: heads of both attentions. Scores are scaled by the whole width, not a head's.
        images: the arguments of ``EVE1Images``.

    Raises:
        ValueError: heads that do not divide the width, or an ``image_size`` that is no multiple of the teacher's.

    Source: EVEv1 (arXiv 2406.11832; baaivision/EVE).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import EVE1PatchEmbedding
        >>> embedder = EVE1PatchEmbedding(dim=8, hidden_dim=16)
        >>> tokens = embedder([torch.rand(3, 56, 84)])
        >>> tuple(tokens.embeds.shape)  # a class token, and two rows of three tokens with their ends
        (9, 8)
        >>> torch.equal(embedder.layout(56, 84).grid, tokens.grid)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = EVE1_LAYOUTS
    shorthand = EVE1Images

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int = 1024,
        num_heads: int = 8,
        **images: Unpack[EVE1ImageArguments],
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim is {hidden_dim}, num_heads {num_heads}; accepted: heads that divide the width")
        own = EVE1Images(**images)
        self.dim, self.mean, self.std = dim, own.mean, own.std
        self.patch_size, self.merge_size = own.patch_size, own.merge_size
        self.token_size = own.patch_size * own.merge_size
        scale = own.image_size // own.teacher_image_size
        self.canvas = {"side": own.teacher_image_size, "cell": own.teacher_patch_size, "scale": scale}
        self.patch = nn.Conv2d(3, hidden_dim, own.patch_size, own.patch_size, bias=False)
        self.local_attention = _WindowAttention(hidden_dim, num_heads)
        self.global_attention = _ClassAttention(hidden_dim, num_heads)
        self.class_token = nn.Parameter(torch.empty(hidden_dim).normal_())
        self.split_token = nn.Parameter(torch.empty(hidden_dim).normal_())
        self.projector = nn.Sequential(nn.Linear(hidden_dim, dim))
        for _ in range(own.projector_layers - 1):
            self.projector.extend([nn.GELU(), nn.Linear(dim, dim)])

    def forward(self, images: Images, masks: Sequence[Mask] | None = None) -> VisionTokens:
        """The tokens of images with pixels in [0, 1], each of its own size.

        Args:
            images: with sides that are multiples of ``token_size``; or canvases, together with ``masks``.
            masks: of each canvas. What they do not mark is cut off, and so are patches that fill no whole
                window. Of a canvas that shows nothing, up to 16 x 16 patches are read, as published.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, a size that is no multiple, pixels that are no RGB in [0, 1], another number of masks, or a mask
                that does not mark one rectangle of whole patches.
        """
        images = check_images(images, self.patch.weight.dtype)
        tokens = self.features([normalise(image, self.mean, self.std) for image in images], masks)
        return tokens._replace(embeds=self.projector(tokens.embeds))

    def features(self, values: Sequence[Float[Tensor, "3 _ _"]], masks: Sequence[Mask] | None = None) -> VisionTokens:
        """The tokens before the projector, of width E, from images that are normalised already; else as ``forward``."""
        if masks is not None:
            if len(masks) != len(values):
                raise ValueError(f"there are {len(masks)} masks; accepted: one for each of {len(values)} images")
            values = [self._cut_out(image, mask) for image, mask in zip(values, masks, strict=True)]
        layouts = [self.layout(*size) for size in sizes(values)]
        patch_tokens = self.local_attention(self._windows(values))
        lengths = [height * width // self.token_size**2 for height, width in sizes(values)]
        class_tokens = self.global_attention(self.class_token, patch_tokens, lengths)
        return pack(layouts, patch_tokens, newline=self.split_token, classes=class_tokens)

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: if a side is no positive multiple of ``token_size``.
        """
        return grid_layout(*grid_of(height, width, self.token_size), class_token=True, newline=True)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes the longer side to ``image_size``, and the shorter to whole cells of the teacher.

        The published code also puts the image on a canvas, of which ``forward`` reads nothing else; see ``preprocess_canvas``.

        Raises:
            ValueError: an image without pixels.
        """
        image = upright_rgb(image)
        placement = self._placement(image)
        return pixels_of(image.resize((placement.width, placement.height)))

    @weightless
    def preprocess_canvas(self, image: PILImage.Image) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
        """The image as ``preprocess`` gives it, in the middle of a square canvas, and the canvas's mask; see ``forward``.

        Raises:
            ValueError: an image without pixels.
        """
        colour = tuple(int(255 * mean) / 255 for mean in self.mean)
        return on_canvas(self.preprocess(image), self._placement(upright_rgb(image)), colour)

    def _placement(self, image: PILImage.Image) -> CanvasPlacement:
        return place_on_canvas(image.height, image.width, **self.canvas)

    def _cut_out(self, image: Tensor, mask: Tensor) -> Tensor:
        """What a canvas shows, up to the last whole windows."""
        if mask.shape != image.shape[1:]:
            raise ValueError(f"a mask is {tuple(mask.shape)}; accepted: that of its image, {tuple(image.shape[1:])}")
        nothing = Box(*(slice(0, min(_DUMMY_CELLS, side // self.patch_size)) for side in mask.shape))
        pixels = (
            slice(cells.start * self.patch_size, cells.start * self.patch_size + count * self.token_size)
            for cells in valid_cells(mask, self.patch_size) or nothing
            for count in [(cells.stop - cells.start) // self.merge_size]
        )
        return image[:, *pixels]

    def _windows(self, values: Sequence[Tensor]) -> Float[Tensor, "P C E"]:
        """The patches of each window of all images. The convolution has the stride of its kernel, and so is a linear map."""
        size, merge = {"p": self.patch_size, "q": self.patch_size}, {"m": self.merge_size, "n": self.merge_size}
        pattern = "c (h m p) (w n q) -> (h w) (m n) (c p q)"
        patches = torch.cat([rearrange(image, pattern, **size, **merge) for image in values])
        return linear(patches.to(self.patch.weight), self.patch.weight.flatten(1))


class _Attention(nn.Module):
    """Queries and their context, each after a norm; scores are scaled by the whole width."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.norm_query = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.norm_context = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, with the heads before the last axis."""
        query = rearrange(self.query(self.norm_query(x)), "... (heads d) -> ... heads d", heads=self.num_heads)
        key_value = self.key_value(self.norm_context(context))
        key, value = rearrange(key_value, "... (two heads d) -> two ... heads d", two=2, heads=self.num_heads)
        return query, key, value


class _WindowAttention(_Attention):
    """The mean of each window, and what it finds in the window."""

    def forward(self, windows: Float[Tensor, "P C E"]) -> Float[Tensor, "P E"]:
        mean = windows.mean(dim=1)
        query, key, value = self.project(mean, windows)
        # By hand: for windows of four, fused attention is slower, and refuses more than 65535 of them on some GPUs.
        scores = torch.einsum("p h d, p c h d -> p h c", query * self.scale, key)
        found = torch.einsum("p h c, p c h d -> p h d", scores.softmax(dim=-1), value)
        return mean + self.out(found.flatten(1))


class _ClassAttention(_Attention):
    """The class token, and what it finds in the tokens of each image."""

    def forward(self, class_token: Float[Tensor, " E"], tokens: Float[Tensor, "P E"], lengths: list[int]) -> Float[Tensor, "B E"]:
        query, key, value = self.project(class_token, tokens)
        keys, values = (packed.transpose(0, 1).split(lengths, dim=1) for packed in (key, value))
        found = [
            scaled_dot_product_attention(query[None, :, None], k[None], v[None], scale=self.scale)[0, :, 0]
            for k, v in zip(keys, values, strict=True)
        ]
        return class_token + self.out(torch.stack(found).flatten(1))
