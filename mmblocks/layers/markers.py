"""Ids that stand around something that is no text, as vectors of the text's own embedding.

Shapes: M markers, D width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block


class Markers(Block):
    """The vectors of a few ids, out of an embedding that another part has as well.

    Args:
        table: ids (N,) to vectors (N, D), such as a ``TextEmbedding``; its weights are that part's own.
        ids: the markers.

    Raises:
        ValueError: no marker, or one below 0.

    Examples:
        >>> from mmblocks import TextEmbedding
        >>> from mmblocks.layers import Markers
        >>> embedding = TextEmbedding(vocab_size=16, dim=8)
        >>> tuple(Markers(table=embedding, ids=(3, 4))().shape)
        (2, 8)
    """

    def __init__(self, *, table: Block, ids: Sequence[int]) -> None:
        super().__init__()
        if not ids or min(ids) < 0:
            raise ValueError(f"ids is {tuple(ids)}; accepted: one or more ids")
        self.table, self.ids = table, tuple(ids)

    def forward(self) -> Float[Tensor, "M D"]:
        """The vectors."""
        device = next(self.table.parameters()).device
        found: Tensor = self.table(torch.tensor(self.ids, device=device))
        return found
