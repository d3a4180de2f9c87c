"""The bottleneck of continuous tokenizers that draw nothing: latents brought to mean zero and deviation one.

Shapes: D width of a latent.
"""

from typing import ClassVar, NoReturn

from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block
from mmblocks.sequence.tokens import Latents


class AffineBottleneck(Block):
    """(features - mean) / std with two recorded numbers, so that a diffusion or flow head can model the latents.

    Args:
        mean, std: of the encoder's features over a data set; 0 and 1 leave them as they are.

    Raises:
        ValueError: a deviation of 0.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import AffineBottleneck
        >>> features = torch.randn(1, 2, 2, 6) * 3 + 5
        >>> z = AffineBottleneck(mean=5.0, std=3.0)(features).z
        >>> torch.allclose(z * 3 + 5, features, atol=1e-6)
        True
    """

    codebook_sizes: ClassVar[tuple[int, ...]] = ()

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        if std == 0:
            raise ValueError(f"std is {std}; accepted: numbers other than 0")
        self.mean = mean
        self.std = std

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Normalised latents."""
        return Latents(z=(features - self.mean) / self.std)

    def lookup(self, ids: Int[Tensor, "*N"]) -> NoReturn:
        """There is nothing to look up.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "ids were given, but the latents are continuous and have no codes; accepted: Latents, of which z is decoded"
        )
