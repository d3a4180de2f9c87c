"""A learned vector for each place of an image, added to what another embedder makes of its codes or latents.

Shapes: N tokens, D width, T, H and W sides of a grid.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.sequence.tokens import vectors_of
from mmblocks.support.checks import check_range


class LearnedPlaces(Block):
    """An embedder of codes or vectors that is told where in its image each stands.

    It serves every way of writing alike, since all of a model's images pass through its inputs: whole spans and their copies,
    images that are read alone, and tokens that are written one after the other. An input of images alone: ids of text
    would count as standing at the first place.

    Args:
        embedder: of ids or vectors.
        dim: D.
        size: sides of the largest grid, (H, W) or (T, H, W); smaller ones use its first rows and columns.
        init_std: of the initial vectors.

    Raises:
        ValueError: a size of other than two or three sides of at least 1.

    Source: BAGEL (arXiv 2505.14683), whose vectors are of sines and cosines and not learned.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, text, vectors
        >>> from mmblocks.embedders import LearnedPlaces
        >>> latents = LearnedPlaces(embedder=TextEmbedding(vocab_size=8, dim=32), dim=32, size=(4, 4))
        >>> grid = torch.tensor([[0, 0, 0], [0, 2, 1]])
        >>> tuple(latents.at(torch.tensor([5, 5]), grid).shape)
        (2, 32)
    """

    def __init__(self, *, embedder: nn.Module, dim: int, size: tuple[int, ...], init_std: float = 0.02) -> None:
        super().__init__()
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"size is {size}; accepted: (H, W) or (T, H, W), with sides of at least 1")
        self.embedder, self.size = embedder, tuple(size)
        self.places = nn.Parameter(torch.empty(*size, dim).normal_(std=init_std))

    def forward(self, values: Tensor) -> Float[Tensor, "N D"]:
        """Values without places.

        Raises:
            TypeError: always; ``at`` takes places too.
        """
        raise TypeError("LearnedPlaces was called without places; accepted: at(values, grid), as models of this library call it")

    def at(self, values: Tensor, grid: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """Values and their (t, h, w) to vectors.

        Raises:
            ValueError: places outside of the largest grid (checked on CPU).
        """
        axes = grid[:, -len(self.size) :].unbind(-1)
        for name, numbers, side in zip("thw"[-len(self.size) :], axes, self.size, strict=True):
            check_range(name, numbers, side)
        made = vectors_of(self.embedder(values))
        return made + self.places[axes].to(made.dtype)
