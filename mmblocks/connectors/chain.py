"""Several connectors, one after the other."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.connectors.grids import Grid
from mmblocks.roles import GridConnector


class ConnectorChain(Block):
    """What one connector gives, the next one takes: ``ConnectorChain(parts=[PixelShuffle(), MLPProjector(...)])``.

    Args:
        parts: the connectors, at least one.

    Raises:
        ValueError: there are none.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import ConnectorChain, MLPProjector, PixelShuffle
        >>> connector = ConnectorChain(parts=[PixelShuffle(), MLPProjector(in_dim=4 * 8, dim=16)])
        >>> tuple(connector(torch.randn(1, 4, 6, 8)).shape)
        (1, 2, 3, 16)
        >>> connector.out_grid((4, 6))
        (2, 3)
    """

    def __init__(self, *, parts: Sequence[Block]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty; accepted: at least one connector")
        self.parts = nn.ModuleList(parts)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *grid2 D"]:
        """Through all parts; raises what they raise."""
        for part in self.parts:
            features = part(features)
        return features

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get; raises what the parts raise. A part that names no grid keeps it."""
        for part in self.parts:
            grid = part.out_grid(grid) if isinstance(part, GridConnector) else grid
        return grid
