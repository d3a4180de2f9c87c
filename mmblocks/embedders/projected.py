"""A table of narrow vectors and a connector as one embedder of ids.

Shapes: N ids, C width of the table, D width of the trunk.
"""

from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block


class ProjectedEmbedding(Block):
    """Looks ids up in a table, and hands the vectors to a connector, token by token: what Janus reads image codes with.

    Args:
        table: ids to vectors (N, C), such as a ``TextEmbedding``.
        connector: vectors (N, C) to (N, D), such as an ``MLPProjector``.

    Source: Janus (arXiv 2410.13848; deepseek-ai/Janus).

    Examples:
        >>> import torch
        >>> from mmblocks import TextEmbedding
        >>> from mmblocks.connectors import MLPProjector
        >>> from mmblocks.embedders import ProjectedEmbedding
        >>> codes = ProjectedEmbedding(table=TextEmbedding(vocab_size=64, dim=8), connector=MLPProjector(in_dim=8, dim=32))
        >>> tuple(codes(torch.tensor([5, 63, 5])).shape)
        (3, 32)
    """

    def __init__(self, *, table: Block, connector: Block) -> None:
        super().__init__()
        self.table = table
        self.connector = connector

    def forward(self, ids: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Ids of the table to vectors; raises what the parts raise."""
        vectors: Tensor = self.connector(self.table(ids))
        return vectors
