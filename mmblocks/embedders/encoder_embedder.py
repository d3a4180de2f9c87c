"""An encoder and a connector as one embedder: images to the tokens a trunk reads.

Shapes: B images of one size, H and W pixels, N tokens of all images, D width of the trunk.
"""

from typing import cast

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.image_tokens import Images, check_images, pack, sizes
from mmblocks.roles import AnySize, GridConnector, OneSize, Preprocessing, TokenEncoder
from mmblocks.sequence.tokens import ImageLayout, TokenKind, VisionTokens
from mmblocks.support.pickling import weightless


class EncoderEmbedder(Block):
    """What an encoder sees in an image, as a connector hands it on; images of one size go through both together.

        EncoderEmbedder(encoder=EVACLIPVision(...), connector=MLPProjector(in_dim=1024, dim=4096))

    What the parts need, beside being called:

    - The encoder names the grid of its features, by ``image_size`` and ``grid`` if it takes one size, else by a method
      ``grid_of(height, width)`` that raises ``ValueError`` for sizes it does not take. With ``preprocess`` it may also make
      pixels of a PIL image. With ``class_token``, it has a method ``tokens(pixels)``.
    - The connector says by ``out_grid(grid)`` what becomes of a grid; one without this method keeps it.

    A token's place is (0, row, column) on a grid of rows and columns, (0, 0, index) where tokens have no places.

    Args:
        encoder: pixels in [0, 1] to features (B, *grid, C), or to a list of them that the connector reads.
        connector: features to (B, *grid, D).
        class_token: hand the connector the class token and all patches as one row, as BLIP-2's and Emu's connectors want it.

    Raises:
        TypeError: an encoder that does not name its grid, or that has no ``tokens`` where the class token is asked for.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import MLPProjector
        >>> from mmblocks.embedders import EncoderEmbedder
        >>> from mmblocks.encoders import EVACLIPVision
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "image_size": (28, 28), "patch_size": 14}
        >>> embedder = EncoderEmbedder(encoder=EVACLIPVision(tower=tower), connector=MLPProjector(in_dim=16, dim=32))
        >>> tuple(embedder([torch.rand(3, 28, 28)] * 3).embeds.shape)
        (12, 32)
    """

    def __init__(self, *, encoder: Block, connector: Block, class_token: bool = False) -> None:
        super().__init__()
        name = type(encoder).__name__
        if not isinstance(encoder, AnySize | OneSize):
            raise TypeError(f"encoder {name} does not name its grid; accepted: one with grid_of, or with image_size and grid")
        if class_token and not isinstance(encoder, TokenEncoder):
            raise TypeError(f"encoder {name} has no method tokens; accepted with class_token: one that has")
        self.encoder = encoder
        self.connector = connector
        self.class_token = class_token

    def forward(self, images: Images) -> VisionTokens:
        """Images with pixels in [0, 1], of sizes that the encoder takes.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, pixels that are no RGB in [0, 1], or a size that the parts refuse; also parts that give
                other tokens than they have named.
        """
        images = check_images(images)
        members_of: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes(images)):
            members_of.setdefault(size, []).append(index)
        layouts = {size: self.layout(*size) for size in members_of}
        tokens: list[Tensor] = [images[0]] * len(images)
        for size, members in members_of.items():
            together = self._tokens(torch.stack([images[index] for index in members]), layouts[size])
            for index, one in zip(members, together, strict=True):
                tokens[index] = one
        return pack([layouts[size] for size in sizes(images)], torch.cat(tokens))

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: a size that the encoder or the connector does not take.
        """
        grid = self._grid_of(height, width)
        if self.class_token:
            grid = (1 + grid[0] * grid[1],)
        if isinstance(self.connector, GridConnector):
            grid = _out_grid(self.connector, grid, height, width)
        places = torch.cartesian_prod(*(torch.arange(side) for side in (1,) * (3 - len(grid)) + tuple(grid)))
        return ImageLayout(grid=places, kind=torch.full((len(places),), int(TokenKind.PATCH)))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the encoder wants it.

        Raises:
            TypeError: an encoder without ``preprocess``.
        """
        if not isinstance(self.encoder, Preprocessing):
            raise TypeError(f"encoder {type(self.encoder).__name__} has no preprocess; accepted: images that are tensors already")
        return self.encoder.preprocess(image)

    def _grid_of(self, height: int, width: int) -> tuple[int, ...]:
        if isinstance(self.encoder, AnySize):
            return self.encoder.grid_of(height, width)
        encoder = cast(OneSize, self.encoder)
        if encoder.image_size is not None and (height, width) != (*encoder.image_size,):
            rows, columns = encoder.image_size
            raise ValueError(f"image is {height}x{width}; accepted: {rows}x{columns} (see preprocess)")
        return encoder.grid

    def _tokens(self, pixels: Tensor, layout: ImageLayout) -> Tensor:
        """(B, tokens, D)."""
        features = cast(TokenEncoder, self.encoder).tokens(pixels) if self.class_token else self.encoder(pixels)
        embeds: Tensor = self.connector(features).flatten(1, -2)
        if embeds.shape[1] != len(layout.kind):
            raise ValueError(f"connector gave {embeds.shape[1]} tokens for an image; accepted: {len(layout.kind)}, as it has named")
        return embeds


def _out_grid(connector: GridConnector, grid: tuple[int, ...], height: int, width: int) -> tuple[int, ...]:
    try:
        return connector.out_grid(grid)
    except ValueError as error:
        raise ValueError(f"image is {height}x{width}: {error}") from error
