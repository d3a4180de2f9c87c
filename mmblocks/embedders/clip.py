"""Clips through an embedder of images, frame by frame.

Shapes: T frames, H and W pixels, N tokens of all clips, D width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.roles import Embedder, Preprocessing, check_role
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless


class ClipEmbedder(Block):
    """The tokens of each frame, frame after frame; a token's place tells its frame as well. An image is a clip of one frame.

    Args:
        embedder: of images.

    Raises:
        TypeError: one that is none.

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import ClipEmbedder, NEOPatchEmbedding
        >>> embedder = ClipEmbedder(embedder=NEOPatchEmbedding(dim=8, hidden_dim=16))
        >>> embedder.layout(32, 64, 2).grid.tolist()  # (t, h, w) of each token
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
        >>> embedder([torch.rand(2, 3, 32, 64), torch.rand(3, 32, 32)]).image.tolist()
        [0, 0, 0, 0, 1]
    """

    def __init__(self, *, embedder: Block) -> None:
        super().__init__()
        check_role(embedder, Embedder, "embedder")
        self.embedder = embedder

    def forward(self, clips: Sequence[Float[Tensor, "... 3 _ _"]]) -> VisionTokens:
        """Clips (T, 3, H, W), or images (3, H, W), of any sizes.

        Raises:
            ValueError: no clip, or one without frames or of another shape; as the embedder.
        """
        if len(clips) == 0:
            raise ValueError("clips is empty; accepted: at least one")
        for clip in clips:
            if clip.ndim not in (3, 4) or 0 in clip.shape:
                raise ValueError(f"a clip has shape {tuple(clip.shape)}; accepted: (T, 3, H, W) or (3, H, W), with a frame")
        frames = [clip if clip.ndim == 4 else clip[None] for clip in clips]
        made: VisionTokens = self.embedder([frame for clip in frames for frame in clip])
        counts = torch.tensor([len(clip) for clip in frames], device=made.image.device)
        clip_of = torch.arange(len(frames), device=counts.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        time = made.image - first[clip_of][made.image]
        return made._replace(image=clip_of[made.image], grid=_at_times(made.grid, time.to(made.grid.device)))

    @weightless
    def layout(self, height: int, width: int, frames: int = 1) -> ImageLayout:
        """The tokens of a clip of this size.

        Raises:
            ValueError: no frame; a size that the embedder does not take.
        """
        if frames < 1:
            raise ValueError(f"frames is {frames}; accepted: 1 or more")
        one: ImageLayout = self.embedder.layout(height, width)  # type: ignore[operator]  # of its role
        time = torch.arange(frames).repeat_interleave(len(one.kind))
        return ImageLayout(grid=_at_times(one.grid.repeat(frames, 1), time), kind=one.kind.repeat(frames))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """One frame as the embedder wants it.

        Raises:
            TypeError: an embedder without ``preprocess``.
        """
        if not isinstance(self.embedder, Preprocessing):
            raise TypeError(f"embedder {type(self.embedder).__name__} has no preprocess; accepted: images that are tensors already")
        return self.embedder.preprocess(image)


def _at_times(grid: Tensor, time: Tensor) -> Tensor:
    """Places with the frame each belongs to."""
    return torch.cat([grid[:, :1] + time[:, None], grid[:, 1:]], dim=1)
