"""A fixed vector for each place of an image, added to what another embedder makes of its latents.

Shapes: N tokens, D width.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.images.sincos_table import SinCosTable
from mmblocks.sequence.tokens import vectors_of


class FixedPlaces(Block):
    """An embedder of codes or vectors that is told by sines and cosines where in its image each stands; see ``LearnedPlaces``.

    Args:
        embedder: of ids or vectors.
        places: the table.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel): its latents.

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import FixedPlaces
        >>> from mmblocks.layers import SinCosTable
        >>> latents = FixedPlaces(embedder=torch.nn.Linear(4, 32), places=SinCosTable(dim=32, side=8))
        >>> tuple(latents.at(torch.randn(2, 4), torch.tensor([[0, 0, 0], [0, 2, 1]])).shape)
        (2, 32)
    """

    def __init__(self, *, embedder: nn.Module, places: SinCosTable) -> None:
        super().__init__()
        self.embedder, self.places = embedder, places

    def forward(self, values: Tensor) -> Float[Tensor, "N D"]:
        """Values without places.

        Raises:
            TypeError: always; ``at`` takes places too.
        """
        raise TypeError("FixedPlaces was called without places; accepted: at(values, grid), as models of this library call it")

    def at(self, values: Tensor, grid: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """Values and their (t, h, w) to vectors.

        Raises:
            ValueError: places outside of the table (checked on CPU).
        """
        made = vectors_of(self.embedder(values))
        return made + self.places.at(grid).to(made.dtype)
