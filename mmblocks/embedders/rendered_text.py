"""Text that a trunk reads as pixels: drawn on a strip, cut into patches, each of which is a token. No vocabulary.

Shapes: S pixels the strip is high, W pixels it is wide, N tokens of all strips, D width of the trunk.
"""

import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.images.image_tokens import Images, check_images, grid_layout, pack, sizes
from mmblocks.layers.images.pixels import normalise, on_white, pixels_of
from mmblocks.layers.images.resizing import upright
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless

_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation."""


class RenderedTextEmbedding(Block):
    """A linear map of the patches of a strip of text. ``render`` draws the strip, ``forward`` embeds strips of any length.

    A black patch closes each text, so that a model that writes pixels can say that it has ended.

    Args:
        dim: D.
        patch_size: S, pixels a side of a patch.
        patches_per_token: neighbouring patches that make a token.
        font: file of a TrueType or OpenType font; None for Pillow's own, which has Latin letters only. The font is not saved
            with the weights.
        font_size: in pixels.
        margin: white pixels before the text.
        binary: draw black on white with nothing in between.

    Raises:
        ValueError: sizes below one.

    Source: PIXEL (arXiv 2207.06991) and PIXAR (arXiv 2401.03321; april-tools/pixar), which draw with Pango in 8 points at 120
    dots an inch: other pixels than Pillow's.

    Examples:
        >>> from mmblocks.embedders import RenderedTextEmbedding
        >>> embedder = RenderedTextEmbedding(dim=8, patch_size=16)
        >>> strip = embedder.render("pixels")
        >>> tuple(embedder([strip]).embeds.shape) == (strip.shape[2] // 16, 8)
        True
        >>> strip[:, :, -16:].max().item()  # the text ends in black
        0.0
    """

    def __init__(
        self,
        *,
        dim: int,
        patch_size: int = 16,
        patches_per_token: int = 1,
        font: str | None = None,
        font_size: int = 13,
        margin: int = 3,
        binary: bool = True,
    ) -> None:
        super().__init__()
        if min(dim, patch_size, patches_per_token, font_size) < 1 or margin < 0:
            raise ValueError(
                f"patch_size is {patch_size}, patches_per_token {patches_per_token}, font_size {font_size}, margin {margin};"
                " accepted: at least 1, and no negative margin"
            )
        self.dim = dim
        self.patch_size = patch_size
        self.token_width = patch_size * patches_per_token
        self.font = font
        self.font_size = font_size
        self.margin = margin
        self.binary = binary
        self.linear = nn.Linear(3 * patch_size * self.token_width, dim)

    def forward(self, images: Images) -> VisionTokens:
        """Strips (3, S, W) with pixels in [0, 1], each of its own length.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no strip, a size that is no strip's, or pixels that are no RGB in [0, 1].
        """
        images = check_images(images, self.linear.weight.dtype)
        layouts = [self.layout(*size) for size in sizes(images)]
        values = (normalise(image, _HALF, _HALF) for image in images)
        patches = torch.cat([rearrange(strip, "c h (n w) -> n (c h w)", w=self.token_width) for strip in values])
        return pack(layouts, self.linear(patches.to(self.linear.weight)))

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of a strip of this size.

        Raises:
            ValueError: another height than S, or a width that is no positive multiple of a token's.
        """
        if height != self.patch_size or width <= 0 or width % self.token_width:
            raise ValueError(
                f"image is {height}x{width}; accepted: {self.patch_size} x multiples of {self.token_width} (see render)"
            )
        return grid_layout(1, width // self.token_width)

    @weightless
    def render(self, text: str) -> Float[Tensor, "3 S W"]:
        """Draws one line, black on white, filled up to whole tokens, with a black patch after it. White space becomes blanks.

        Raises:
            OSError: a font file that cannot be read.
        """
        line = " ".join(text.split())
        font = self._font()
        left, _, right, _ = font.getbbox(line, anchor="ls") if line else (0, 0, 0, 0)
        width = math.ceil((self.margin + right - min(left, 0)) / self.token_width) * self.token_width if line else 0
        strip = PILImage.new("L", (width + self.token_width, self.patch_size), 255)
        if line:
            ascent, descent = font.getmetrics()
            baseline = (self.patch_size + ascent - descent) // 2
            ImageDraw.Draw(strip).text((self.margin - min(left, 0), baseline), line, fill=0, font=font, anchor="ls")
        values = np.array(strip)
        if self.binary:
            values = np.where(values < 128, 0, 255)
        values[:, width:] = np.where(np.arange(self.token_width) < self.patch_size, 0, 255)
        return torch.from_numpy(values).float().div(255).expand(3, -1, -1).clone()

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 S W"]:
        """A picture of a line of text as a strip: brought to the height S, and filled up with white to whole tokens.

        Raises:
            ValueError: an image without pixels.
        """
        image = on_white(upright(image))
        width = max(round(image.width * self.patch_size / image.height), 1)
        pixels = pixels_of(image.resize((width, self.patch_size)))
        strip = torch.ones(3, self.patch_size, math.ceil(width / self.token_width) * self.token_width)
        strip[:, :, :width] = pixels
        return strip

    def _font(self) -> Any:
        if self.font is None:
            return ImageFont.load_default(self.font_size)
        return ImageFont.truetype(self.font, self.font_size)
