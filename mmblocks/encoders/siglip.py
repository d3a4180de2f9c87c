"""SigLIP's image tower as an encoder: features of patches on a grid, without the pooled vector.

Shapes: B images, H and W pixels, h and w patches, D width.
"""

from typing import Literal, Unpack, get_args

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels, check_size, normalised_for, pixels_of, rgb_of
from mmblocks.layers.towers.siglip import SiglipArguments, SiglipPatches, SiglipSizes
from mmblocks.support.pickling import weightless

Fit = Literal["stretch", "pad", "pad-rounded"]
"""How an image of any size becomes a square; see ``SigLIPVision``."""

_MIN_SIDE = 14
"""The least side, in pixels, to which a padded image is resized."""


class SigLIPVision(Block):
    """Images of one size to the features of all patches, after the final norm.

    Args:
        activation: inside the feed-forward parts; SigLIP's "gelu_tanh", while timm and Janus compute "gelu".
        fit: how ``preprocess`` makes a square. "stretch": both sides are resized (SigLIP). "pad": the longer side is resized, and
            the shorter one, in proportion and rounded down, is filled up with the colour of ``mean`` (Janus). "pad-rounded": the
            same with the shorter side rounded to the nearest, as transformers' Janus does.
        mean, std: what pixels are normalised with.
        tower: the arguments of ``SiglipSizes``.

    Raises:
        ValueError: another ``fit``.

    Source: SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786) at fixed resolution; Janus (deepseek-ai/Janus).

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from mmblocks.encoders import SigLIPVision
        >>> sizes = {"image_size": 28, "patch_size": 14, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
        >>> vision = SigLIPVision(fit="pad", **sizes).eval()
        >>> pixels = vision.preprocess(Image.new("RGB", (50, 30)))
        >>> tuple(pixels.shape), tuple(vision(pixels[None]).shape)
        ((3, 28, 28), (1, 2, 2, 16))
    """

    shorthand = SiglipSizes

    def __init__(
        self,
        *,
        activation: str = "gelu_tanh",
        fit: Fit = "stretch",
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **tower: Unpack[SiglipArguments],
    ) -> None:
        super().__init__()
        if fit not in get_args(Fit):
            raise ValueError(f"fit is {fit!r}; accepted: {', '.join(map(repr, get_args(Fit)))}")
        sizes = SiglipSizes(**tower)
        self.tower = SiglipPatches(activation=activation, **tower)
        self.dim = sizes.dim
        self.image_size = sizes.image_size, sizes.image_size
        self.grid = (sizes.image_size // sizes.patch_size,) * 2
        self.fit, self.mean, self.std = fit, mean, std

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Features of all patches.

        Args:
            pixels: in [0, 1], of the tower's size.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of another size.
        """
        check_pixels(pixels, 4)
        if pixels.shape[2:] != self.image_size:
            rows, columns = self.image_size
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}; accepted: (B, 3, {rows}, {columns})")
        return self.tower.patches(normalised_for(self.tower, pixels, self.mean, self.std)).unflatten(1, self.grid)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as a square (bicubic), as ``fit`` says.

        Raises:
            ValueError: an image without pixels.
        """
        check_size(image.height, image.width)
        image, side = rgb_of(image), self.image_size[0]
        if self.fit == "stretch":
            return pixels_of(image.resize((side, side), PILImage.Resampling.BICUBIC))
        longer = max(image.size)
        fitting = [int(own / longer * side) if self.fit == "pad" else round(own * (side / longer)) for own in image.size]
        width, height = (max(own, _MIN_SIDE) for own in fitting)
        resized = image.resize((width, height), PILImage.Resampling.BICUBIC)
        whole = max(resized.size)
        square = PILImage.new("RGB", (whole, whole), tuple(int(255 * colour) for colour in self.mean))
        square.paste(resized, ((whole - width) // 2, (whole - height) // 2))
        return pixels_of(square)
