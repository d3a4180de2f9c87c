"""The codes of one place, all levels of them, as one vector.

Shapes: N tokens, Q levels, D width.
"""

from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block
from mmblocks.layers.depth_tables import DepthTables


class DepthCodeEmbedding(Block):
    """The sum of a learned vector for the code of each level; a level without a code (-1) has a vector of its own.

    Args:
        sizes: K of each level: a residual tokenizer's ``codebook_sizes``.
        dim: D.
        init_std: of the initial vectors.

    Raises:
        ValueError: no level, or an empty one; ``dim`` below 1.

    Source: RQ-Transformer (arXiv 2203.01941), MusicGen (arXiv 2306.05284), Moshi (arXiv 2410.00037).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import DepthCodeEmbedding
        >>> embedding = DepthCodeEmbedding(sizes=(8, 8, 8), dim=4)
        >>> tuple(embedding(torch.tensor([[1, 2, 7], [3, 0, -1]])).shape)
        (2, 4)
    """

    def __init__(self, *, sizes: tuple[int, ...], dim: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.tables = DepthTables(tuple(sizes), dim, init_std)

    def forward(self, codes: Int[Tensor, "N Q"]) -> Float[Tensor, "N D"]:
        """Codes to vectors.

        Raises:
            TypeError: codes that are no integers.
            ValueError: another shape, or a code out of range (checked on CPU).
        """
        vectors: Tensor = self.tables(codes)
        return vectors.sum(dim=1)
