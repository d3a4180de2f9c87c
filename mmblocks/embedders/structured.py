"""Learned structure tokens around the tokens of any embedder of images.

Shapes: H and W pixels, N tokens of all images, D width of the trunk.
"""

from typing import cast

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.images.image_tokens import Images, sizes
from mmblocks.layers.images.structure_tokens import NUM_COLUMNS, NUM_ROWS, ROW_END, Structured, with_structure
from mmblocks.roles import Embedder, Preprocessing
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless


class StructuredEmbedder(Block):
    """An embedder's tokens with a learned newline token after each row, and with the image's size in front, in learned tokens.

        StructuredEmbedder(embedder=NEOPatchEmbedding(dim=4096), dim=4096, max_size=(128, 128))

    A trunk without positions of rows and columns so learns the shape of images of any size.

    Args:
        embedder: images to patch tokens, perhaps with class tokens, such as ``NEOPatchEmbedding`` or ``EncoderEmbedder``.
        dim: D.
        row_ends: whether a newline token closes each row.
        max_size: rows and columns, in tokens, up to which an image's size has learned tokens; None for no size in front.
        init_std: standard deviation of the initial vectors.

    Source: newlines as in LLaVA-NeXT and EVE (arXiv 2406.11832); height and width tokens in front as in Lumina-mGPT
    (arXiv 2408.02657), whose are of the vocabulary.

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import NEOPatchEmbedding, StructuredEmbedder
        >>> from mmblocks.sequence.tokens import TokenKind
        >>> patches = NEOPatchEmbedding(dim=8, hidden_dim=16)
        >>> embedder = StructuredEmbedder(embedder=patches, dim=8, max_size=(9, 9))
        >>> tokens = embedder([torch.rand(3, 64, 96)])
        >>> [TokenKind(kind).name for kind in tokens.kind.tolist()[:6]]  # the size, and the first of two rows
        ['SIZE', 'SIZE', 'PATCH', 'PATCH', 'PATCH', 'NEWLINE']
    """

    def __init__(
        self,
        *,
        embedder: Block,
        dim: int,
        row_ends: bool = True,
        max_size: tuple[int, int] | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.dim = dim
        self.max_size = max_size
        self.row_end = nn.Parameter(torch.empty(dim).normal_(std=init_std)) if row_ends else None
        self.num_rows, self.num_columns = (
            None if max_size is None else nn.Parameter(torch.empty(side, dim).normal_(std=init_std)) for side in max_size or (0, 0)
        )

    def forward(self, images: Images) -> VisionTokens:
        """Images as the embedder takes them.

        Raises:
            TypeError: pixels that the embedder refuses.
            ValueError: likewise; or an image of more rows or columns than ``max_size``.
        """
        if len(images) == 0:
            raise ValueError("images is empty; accepted: at least one")
        structured = [self._structured(self._own.layout(*size)) for size in sizes(images)]
        tokens: VisionTokens = self.embedder(images)
        made, first = [], 0
        for one in structured:
            count = int((one.source >= 0).sum())
            made.append(self._one(tokens.embeds[first : first + count], one))
            first += count
        device = tokens.embeds.device
        image = torch.cat([torch.full_like(one.source, index) for index, one in enumerate(structured)])
        return VisionTokens(
            embeds=torch.cat(made),
            image=image.to(device),
            grid=torch.cat([one.layout.grid for one in structured]).to(device),
            kind=torch.cat([one.layout.kind for one in structured]).to(device),
        )

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: a size that the embedder refuses, or one of more rows or columns than ``max_size``.
        """
        return self._structured(self._own.layout(height, width)).layout

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the embedder wants it; raises what its ``preprocess`` raises."""
        return cast(Preprocessing, self.embedder).preprocess(image)

    @property
    def _own(self) -> Embedder:
        return cast(Embedder, self.embedder)

    def _structured(self, layout: ImageLayout) -> Structured:
        made = with_structure(layout, row_ends=self.row_end is not None, size_prefix=self.max_size is not None)
        if self.max_size is not None and (made.rows > self.max_size[0] or made.columns > self.max_size[1]):
            most = "x".join(str(side) for side in self.max_size)
            raise ValueError(f"an image has {made.rows}x{made.columns} tokens; accepted: at most {most}, max_size")
        return made

    def _one(self, own: Float[Tensor, "n D"], one: Structured) -> Float[Tensor, "N D"]:
        """One image's tokens, with vectors of structure between them."""
        vectors, index = [own], one.source
        for marker, parameter, row in (
            (ROW_END, self.row_end, None),
            (NUM_ROWS, self.num_rows, one.rows - 1),
            (NUM_COLUMNS, self.num_columns, one.columns - 1),
        ):
            if parameter is not None:
                index = torch.where(one.source == marker, len(own) + len(vectors) - 1, index)
                vectors.append((parameter if row is None else parameter[row])[None].to(own.dtype))
        return torch.cat(vectors).index_select(0, index.to(own.device))
