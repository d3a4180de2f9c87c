"""Images between the ids that open and close them, which belong to the image: they see all of it, and stand where it stands.

Shapes: N tokens of all images, D width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.images.sincos_table import SinCosTable
from mmblocks.layers.markers import Markers
from mmblocks.roles import Embedder, Preprocessing, check_role
from mmblocks.sequence.tokens import ImageLayout, TokenKind, VisionTokens
from mmblocks.support.pickling import weightless


class FramedImages(Block):
    """What an embedder of images makes of them, with markers around each image, and a place added to each of its tokens.

    Args:
        embedder: of images.
        markers: two, before and after each image.
        places: added to the embedder's tokens; None for nothing.

    Raises:
        TypeError: something that embeds no images.
        ValueError: another number of markers.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel): the images that it reads through its vision encoder.

    Examples:
        >>> import torch
        >>> from mmblocks import TextEmbedding
        >>> from mmblocks.embedders import FramedImages, NEOPatchEmbedding
        >>> from mmblocks.layers import Markers
        >>> markers = Markers(table=TextEmbedding(vocab_size=16, dim=8), ids=(3, 4))
        >>> embedder = FramedImages(embedder=NEOPatchEmbedding(dim=8, hidden_dim=16), markers=markers)
        >>> embedder([torch.rand(3, 32, 64), torch.rand(3, 32, 32)]).image.tolist()
        [0, 0, 0, 0, 1, 1, 1]
    """

    def __init__(self, *, embedder: Block, markers: Markers, places: SinCosTable | None = None) -> None:
        super().__init__()
        check_role(embedder, Embedder, "embedder")
        if len(markers.ids) != 2:
            raise ValueError(f"markers has {len(markers.ids)} ids; accepted: 2, before and after an image")
        self.embedder, self.markers, self.places = embedder, markers, places

    def forward(self, images: Sequence[Float[Tensor, "_ _ _"]] | Float[Tensor, "_ _ _ _"]) -> VisionTokens:
        """The images' tokens; raises what the embedder raises, and ``ValueError`` for an image that is larger than the places."""
        tokens: VisionTokens = self.embedder(images)
        embeds = tokens.embeds if self.places is None else tokens.embeds + self.places.at(tokens.grid).to(tokens.embeds.dtype)
        begin, end = self.markers().to(embeds.dtype)[:, None].unbind(0)
        counts = torch.bincount(tokens.image, minlength=len(images)).tolist()
        framed = [part for one in embeds.split(counts) for part in (begin, one, end)]
        grids = [
            _framed(ImageLayout(grid, kind))
            for grid, kind in zip(tokens.grid.split(counts), tokens.kind.split(counts), strict=True)
        ]
        image = torch.arange(len(images), device=tokens.image.device)
        return VisionTokens(
            embeds=torch.cat(framed),
            image=image.repeat_interleave(torch.tensor(counts, device=image.device) + 2),
            grid=torch.cat([layout.grid for layout in grids]),
            kind=torch.cat([layout.kind for layout in grids]),
        )

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size; raises what the embedder raises."""
        return _framed(cast(Embedder, self.embedder).layout(height, width))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the embedder wants it.

        Raises:
            TypeError: an embedder without ``preprocess``.
        """
        if not isinstance(self.embedder, Preprocessing):
            name = type(self.embedder).__name__
            raise TypeError(f"embedder {name} has no preprocess; accepted: images that are tensors already")
        return self.embedder.preprocess(image)


def _framed(layout: ImageLayout) -> ImageLayout:
    nowhere = layout.grid.new_zeros(1, 3)
    marker = layout.kind.new_full((1,), int(TokenKind.MARKER))
    return ImageLayout(torch.cat([nowhere, layout.grid, nowhere]), torch.cat([marker, layout.kind, marker]))
