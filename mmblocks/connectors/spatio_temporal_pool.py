"""A video's tokens pooled twice: over space, one token a frame, and over time, one token a place.

Shapes: B videos, T frames, rows and columns of tokens, D their width.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block
from mmblocks.connectors.grids import Grid, check_axes


class SpatioTemporalPool(Block):
    """T means over the places of a frame, then rows x columns means over the frames: T + rows * columns tokens.

    Video-ChatGPT fills up to 100 frames with zeros after the frames' means; here there are as many as the video has.

    Source: Video-ChatGPT (arXiv 2306.05424; mbzuai-oryx/Video-ChatGPT).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import SpatioTemporalPool
        >>> video = torch.randn(2, 3, 4, 5, 8)
        >>> tokens = SpatioTemporalPool()(video)
        >>> tuple(tokens.shape)
        (2, 23, 8)
        >>> torch.allclose(tokens[:, :3], video.mean(dim=(2, 3)), atol=1e-6)
        True
    """

    def forward(self, features: Float[Tensor, "B T rows columns D"]) -> Float[Tensor, "B M D"]:
        """Tokens of frames in the order of time, then of places row by row.

        Raises:
            ValueError: features that are no video's.
        """
        check_axes(features, "frames", "rows", "columns")
        of_frames = reduce(features, "b t h w d -> b t d", "mean")
        of_places = rearrange(features.mean(1), "b h w d -> b (h w) d")
        return torch.cat([of_frames, of_places], dim=1)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get."""
        frames, rows, columns = grid
        return (frames + rows * columns,)
