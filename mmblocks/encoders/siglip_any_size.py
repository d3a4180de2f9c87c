"""SigLIP's image tower for images of many sizes: patches take the positions of the first rows and columns of a large table.

Shapes: B images, H and W pixels, h and w patches, D width.
"""

from typing import Unpack

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels, normalised_for, pixels_of
from mmblocks.layers.images.resizing import fit_edges, rgb_on_white
from mmblocks.layers.towers.siglip import SiglipArguments, SiglipPatches, SiglipSizes
from mmblocks.support.pickling import weightless


class SigLIPAnySize(Block):
    """Images of whole patches, up to the tower's own size, to the features of all patches, after the final norm.

    Args:
        activation: inside the feed-forward parts.
        min_side, max_pixels: of ``fit_edges``, by which ``preprocess`` resizes; the longest side is ``image_size``.
        mean, std: what pixels are normalised with.
        tower: the arguments of ``SiglipSizes``; ``image_size`` is the largest side.

    Raises:
        ValueError: a size that is no multiple of the patch.

    Source: SigLIP 2 (arXiv 2502.14786) as BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel) reads images of their own aspect:
        positions are neither resized nor rotary, and there is no pooled vector.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import SigLIPAnySize
        >>> sizes = {"image_size": 56, "patch_size": 14, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
        >>> vision = SigLIPAnySize(**sizes).eval()
        >>> tuple(vision(torch.rand(1, 3, 28, 42)).shape), vision.grid_of(28, 42)
        ((1, 2, 3, 16), (2, 3))
    """

    shorthand = SiglipSizes

    def __init__(
        self,
        *,
        activation: str = "gelu_tanh",
        min_side: int = 224,
        max_pixels: int = 14 * 14 * 9 * 1024,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **tower: Unpack[SiglipArguments],
    ) -> None:
        super().__init__()
        sizes = SiglipSizes(**tower)
        if sizes.image_size % sizes.patch_size:
            raise ValueError(f"image_size is {sizes.image_size}; accepted: a multiple of the patch_size {sizes.patch_size}")
        self.tower = SiglipPatches(activation=activation, **tower)
        self.dim, self.patch_size, self.side = sizes.dim, sizes.patch_size, sizes.image_size // sizes.patch_size
        self.min_side, self.max_pixels, self.mean, self.std = min_side, max_pixels, mean, std

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Features of all patches.

        Args:
            pixels: in [0, 1].

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of a size that ``grid_of`` refuses.
        """
        check_pixels(pixels, 4)
        rows, columns = self.grid_of(*pixels.shape[2:])
        positions = self.tower.positions.unflatten(0, (self.side, self.side))[:rows, :columns]
        x = self.tower.patch(normalised_for(self.tower, pixels, self.mean, self.std)).movedim(1, -1) + positions
        x = x.flatten(1, 2)
        for layer in self.tower.layers:
            x = layer(x)
        return self.tower.norm(x).unflatten(1, (rows, columns))

    @weightless
    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size.

        Raises:
            ValueError: sides that are no multiples of the patch, or longer than the table.
        """
        rows, columns = height // self.patch_size, width // self.patch_size
        if (rows * self.patch_size, columns * self.patch_size) != (height, width) or not min(rows, columns) >= 1:
            raise ValueError(f"image is {height}x{width}; accepted: sides that are multiples of {self.patch_size} (see preprocess)")
        if max(rows, columns) > self.side:
            raise ValueError(
                f"image is {height}x{width}; accepted: sides of at most {self.side * self.patch_size} (see preprocess)"
            )
        return rows, columns

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image on white, where it is transparent, and resized (bicubic) by ``fit_edges``.

        Raises:
            ValueError: an image without pixels.
        """
        longest = self.side * self.patch_size
        bounds = {"multiple": self.patch_size, "min_side": self.min_side, "max_side": longest, "max_pixels": self.max_pixels}
        height, width = fit_edges(image.height, image.width, **bounds)
        return pixels_of(rgb_on_white(image).resize((width, height), PILImage.Resampling.BICUBIC))
