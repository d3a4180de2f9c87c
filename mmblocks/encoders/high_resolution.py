"""Large images through an encoder: cut into tiles for one that takes one size, or at their own size for one that takes any.

Shapes: B images, H and W pixels, T tiles, h and w places of one tile, D width.
"""

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor
from torch.nn.functional import interpolate

from mmblocks.block import Block
from mmblocks.encoders.fused import EncoderGroup, width_of
from mmblocks.layers.images.pixels import check_pixels, dtype_of, pixels_of, widened
from mmblocks.layers.images.resizing import smart_resize, upright_rgb
from mmblocks.roles import AnySize, GridConnector, OneSize, Sized, TokenEncoder, Wide
from mmblocks.support.pickling import weightless


def choose_tiles(height: int, width: int, *, tile: tuple[int, int], max_tiles: int, min_tiles: int = 1) -> tuple[int, int]:
    """Rows and columns of tiles whose shape together is nearest to that of the image.

    Of several with the same shape, such as 1x1 and 2x2, the larger one is taken if the image has more than half of its pixels.

    Args:
        height: of the image.
        width: of the image.
        tile: height and width of one.
        max_tiles: the most there may be.
        min_tiles: the fewest.

    Raises:
        ValueError: a side below one, or fewer tiles at most than at least.

    Source: InternVL 1.5 (arXiv 2404.16821; OpenGVLab/InternVL), whose tiles are squares.
    """
    if min(height, width) < 1:
        raise ValueError(f"image is {height}x{width}; accepted: sides of at least one pixel")
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"min_tiles is {min_tiles}, max_tiles {max_tiles}; accepted: 1 or more, the most not below the fewest")
    sides = range(1, max_tiles + 1)
    shapes = [(rows, columns) for rows in sides for columns in sides if min_tiles <= rows * columns <= max_tiles]
    aspect, best, smallest = width / height, (1, 1), float("inf")
    # In this order, which decides between shapes that are equally near.
    for rows, columns in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1], shape[0])):
        off = abs(aspect - columns * tile[1] / (rows * tile[0]))
        enough = height * width > 0.5 * tile[0] * tile[1] * rows * columns
        if off < smallest or (off == smallest and enough):
            best, smallest = (rows, columns), off
    return best


class TiledEncoder(Block):
    """An image of several tiles, each seen by the same encoder, and a thumbnail of the whole.

        encoder = TiledEncoder(encoder=EVACLIPVision(...), max_tiles=12, connector=PixelShuffle())
        encoder(encoder.preprocess(image)[None])             # (1, T, h, w, D)

    Args:
        encoder: of images of one size, or of any with ``tile``; fused ones too. It names its ``grid``, or has ``grid_of``.
        max_tiles: the most that ``preprocess`` makes of an image, and that are taken.
        min_tiles: the fewest that ``preprocess`` makes.
        thumbnail: show the encoder the whole image too, where it is more than one tile: resized (bicubic, antialiased), the last.
        connector: what the features of each tile go through, by itself; None for nothing.
        tile: height and width of a tile, for an encoder that takes several sizes; None for the one size of the encoder.

    Raises:
        TypeError: an encoder that does not name its grid, its width, or its one size where ``tile`` does not.
        ValueError: fewer tiles at most than at least; a tile that the encoder does not take; an encoder of tiles.

    Source: InternVL 1.5 (arXiv 2404.16821), whose thumbnail comes from the image as it was before tiling.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIPVision, TiledEncoder
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
        >>> encoder = TiledEncoder(encoder=EVACLIPVision(tower=tower, embed_dim=8))
        >>> encoder.tiles_of(28, 56), tuple(encoder(torch.rand(1, 3, 28, 56)).shape)  # two tiles and the thumbnail
        ((1, 2), (1, 3, 2, 2, 16))
    """

    def __init__(
        self,
        *,
        encoder: Block,
        max_tiles: int = 12,
        min_tiles: int = 1,
        thumbnail: bool = True,
        connector: Block | None = None,
        tile: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        name, size = type(encoder).__name__, _tile_of(encoder, tile)
        choose_tiles(1, 1, tile=size, max_tiles=max_tiles, min_tiles=min_tiles)
        self.encoder = encoder
        self.connector = connector
        self.tile: tuple[int, int] = size
        self.max_tiles = max_tiles
        self.min_tiles = min_tiles
        self.thumbnail = thumbnail
        self._tile_grid = tuple(encoder.grid_of(*size) if isinstance(encoder, AnySize) else cast(OneSize, encoder).grid)
        if len(self._tile_grid) > 2:
            raise ValueError(f"encoder {name} gives a grid of {self._tile_grid}; accepted: rows and columns, or tokens")
        if connector is None and width_of(encoder) is None:
            raise TypeError(f"encoder {name} does not name its dim; accepted without a connector: one that does, of one width")

    @property
    def dim(self) -> int:
        """Width of what comes out."""
        return cast(Wide, self.encoder if self.connector is None else self.connector).dim

    def tiles_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image that is whole tiles.

        Raises:
            ValueError: an image that is not, or that has more than ``max_tiles``.
        """
        rows, columns = height // self.tile[0], width // self.tile[1]
        if height % self.tile[0] or width % self.tile[1] or not 1 <= rows * columns <= self.max_tiles:
            one = f"{self.tile[0]}x{self.tile[1]}"
            raise ValueError(f"image is {height}x{width}; accepted: 1 to {self.max_tiles} whole tiles of {one} (see preprocess)")
        return rows, columns

    def grid_of(self, height: int, width: int) -> tuple[int, ...]:
        """Tiles, the thumbnail among them, and the grid of one: usually (T, h, w).

        Raises:
            ValueError: as ``tiles_of``; what the connector refuses.
        """
        rows, columns = self.tiles_of(height, width)
        grid = self.connector.out_grid(self._tile_grid) if isinstance(self.connector, GridConnector) else self._tile_grid
        return (rows * columns + (self.thumbnail and rows * columns > 1), *grid)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T *grid D"]:
        """The features of all tiles, row by row, then those of the thumbnail.

        Args:
            pixels: in [0, 1], of whole tiles.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or no whole tiles.
        """
        check_pixels(pixels, num_axes=4)
        rows, columns = self.tiles_of(pixels.shape[2], pixels.shape[3])
        pixels = widened(pixels, dtype_of(self.encoder, pixels.dtype))
        tiles = rearrange(pixels, "b c (r h) (s w) -> b (r s) c h w", r=rows, s=columns)
        if self.thumbnail and rows * columns > 1:
            whole = interpolate(pixels.float(), self.tile, mode="bicubic", antialias=True, align_corners=False)
            tiles = torch.cat([tiles, whole.clamp(0, 1).to(pixels.dtype)[:, None]], dim=1)
        features: Tensor = self.encoder(tiles.flatten(0, 1))
        if self.connector is not None:
            features = self.connector(features)
        return features.unflatten(0, tiles.shape[:2])

    def stitched(self, features: Float[Tensor, "B T h w D"], tiles: tuple[int, int]) -> Float[Tensor, "B H2 W2 D"]:
        """The features of the tiles as one large grid, without the thumbnail's.

        Args:
            features: from ``forward``.
            tiles: rows and columns, as from ``tiles_of``.

        Raises:
            ValueError: fewer tiles than that.
        """
        rows, columns = tiles
        if features.shape[1] < rows * columns:
            raise ValueError(f"features are of {features.shape[1]} tiles; accepted: {rows}x{columns} of them")
        return rearrange(features[:, : rows * columns], "b (r s) h w d -> b (r h) (s w) d", r=rows)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image resized (bicubic) to the tiles that ``choose_tiles`` finds; upright, as its EXIF data has it."""
        image = upright_rgb(image)
        rows, columns = choose_tiles(image.height, image.width, tile=self.tile, max_tiles=self.max_tiles, min_tiles=self.min_tiles)
        size = (columns * self.tile[1], rows * self.tile[0])
        return pixels_of(image.resize(size, PILImage.Resampling.BICUBIC))


def _tile_of(encoder: Block, tile: tuple[int, int] | None) -> tuple[int, int]:
    """The size that an encoder is to see tiles at."""
    name = type(encoder).__name__
    if not isinstance(encoder, AnySize | OneSize):
        raise TypeError(f"encoder {name} does not name its grid; accepted: one with grid_of, or with image_size and grid")
    own = encoder.image_size if isinstance(encoder, Sized) else None
    if own is None and tile is None:
        raise TypeError(f"encoder {name} takes several sizes; accepted: one for images of one size, or tile=(height, width)")
    if tile is not None and own is not None and tuple(tile) != tuple(own):
        raise ValueError(f"tile is {tuple(tile)}; accepted: {tuple(own)}, the one size of encoder {name}, or None")
    size = cast("tuple[int, int]", own if tile is None else tile)
    if min(size) < 1:
        raise ValueError(f"tile is {tuple(size)}; accepted: sides of at least one pixel")
    return size[0], size[1]


class NativeResolution(Block):
    """An image at about its own size and shape, for an encoder that takes any.

        NativeResolution(encoder=TimmEncoder(name="vit_base_patch16_siglip_224", any_size=True), multiple=16)

    Args:
        encoder: takes any multiples of its patch: ``EvaTower(any_size=True)`` inside an ``EVACLIPVision``, ``TimmEncoder``.
        multiple: of which sides are made: the patch, times what a connector joins.
        min_pixels, max_pixels: to which area ``preprocess`` brings an image; see ``smart_resize``.

    Raises:
        ValueError: an encoder of images of one size.
        TypeError: an encoder that does not name its grid.

    Source: the rule of sizes is Qwen2-VL's (arXiv 2409.12191).

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from mmblocks.encoders import NativeResolution, TimmEncoder
        >>> encoder = NativeResolution(encoder=TimmEncoder(name="test_vit", any_size=True), multiple=16, min_pixels=1024)
        >>> pixels = encoder.preprocess(Image.new("RGB", (70, 33)))
        >>> tuple(pixels.shape), tuple(encoder(pixels[None]).shape)
        ((3, 32, 64), (1, 2, 4, 64))
    """

    def __init__(self, *, encoder: Block, multiple: int, min_pixels: int = 256**2, max_pixels: int = 1024**2) -> None:
        super().__init__()
        name = type(encoder).__name__
        if not isinstance(encoder, AnySize):
            raise TypeError(f"encoder {name} does not name its grid; accepted: one with grid_of")
        # A group shows each encoder the image at its own size.
        if isinstance(encoder, Sized) and encoder.image_size is not None and not isinstance(encoder, EncoderGroup):
            raise ValueError(f"encoder {name} takes images of one size; accepted: one that takes any (any_size=True)")
        if multiple < 1 or not 1 <= min_pixels <= max_pixels:
            given = f"multiple is {multiple}, min_pixels {min_pixels}, max_pixels {max_pixels}"
            raise ValueError(f"{given}; accepted: 1 or more, and not more at least than at most")
        self.encoder = encoder
        self.multiple = multiple
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    @property
    def dim(self) -> int:
        """Width of the features."""
        return cast(Wide, self.encoder).dim

    def grid_of(self, height: int, width: int) -> tuple[int, ...]:
        """The encoder's grid; raises what it raises."""
        return cast(AnySize, self.encoder).grid_of(height, width)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *grid D"]:
        """The encoder's features; raises what it raises."""
        return self.encoder(pixels)

    def tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """The encoder's tokens; raises what it raises, and a ``TypeError`` where it gives none."""
        if not isinstance(self.encoder, TokenEncoder):
            raise TypeError(f"encoder {type(self.encoder).__name__} has no method tokens; accepted: one that has")
        return self.encoder.tokens(pixels)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image resized (bicubic) to multiples of ``multiple`` and an area within bounds, with about the same aspect.

        Raises:
            ValueError: one side more than 200 times the other.
        """
        image = upright_rgb(image)
        height, width = smart_resize(
            image.height, image.width, multiple=self.multiple, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )
        return pixels_of(image.resize((width, height), PILImage.Resampling.BICUBIC))
