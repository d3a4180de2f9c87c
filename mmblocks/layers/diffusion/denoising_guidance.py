"""Guidance of denoisers: predictions under more and under less of a condition, combined into one.

Shapes: S streams, N rows, C channels.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block


@runtime_checkable
class DenoisingGuidance(Protocol):
    """How a denoising head combines its network's predictions."""

    def __call__(
        self, streams: Sequence[Float[Tensor, "*N C"]], scales: Sequence[float], time: float | None = None
    ) -> Float[Tensor, "*N C"]:
        """The guided prediction; see ``LinearGuidance``."""
        ...


class LinearGuidance(Block):
    """``u + scale * (c - u)``; with more streams, each difference between neighbours has its own scale.

    For text and image conditions the streams are (both, image, none) and the scales (of the text, of the image):
    ``n + image_scale * (i - n) + scale * (c - i)``.

    Args:
        below: leave guidance off where the network's time is below this; NOVA's ``guidance_trunc``.
        renorm: the least factor by which a guided prediction that is longer than the first stream's is shortened to that
            length, over all axes but the first; 1 leaves it as it is; NOVA's ``guidance_renorm``.

    Source: classifier-free guidance (arXiv 2207.12598); three streams: arXiv 2211.09800.
    """

    def __init__(self, *, below: float = 0.0, renorm: float = 1.0) -> None:
        super().__init__()
        if not 0 <= renorm <= 1:
            raise ValueError(f"renorm is {renorm}; accepted: 0 to 1")
        self.below, self.renorm = below, renorm

    def forward(
        self, streams: Sequence[Float[Tensor, "*N C"]], scales: Sequence[float], time: float | None = None
    ) -> Float[Tensor, "*N C"]:
        """The guided prediction.

        Args:
            streams: predictions, from the whole condition to none of it.
            scales: one fewer; 1 takes the condition as it is.
            time: what the network was told.
        """
        check_scales(scales, len(streams))
        first = streams[0]
        if time is not None and time < self.below:
            return first
        guided = exaggerated(streams, scales)
        if self.renorm < 1:
            axes = tuple(range(1, first.ndim))
            ratio = first.norm(dim=axes, keepdim=True) / guided.norm(dim=axes, keepdim=True)
            guided = guided * ratio.clamp(self.renorm, 1)
        return guided


def exaggerated(streams: Sequence[Float[Tensor, "*N C"]], scales: Sequence[float]) -> Float[Tensor, "*N C"]:
    """The last prediction, and from each pair of neighbours their difference times its scale."""
    guided = streams[-1]
    for more, less, scale in zip(streams, streams[1:], scales, strict=False):
        guided = guided + scale * (more - less)
    return guided


def check_scales(scales: Sequence[float], num_streams: int) -> None:
    """Raises ``ValueError`` for a scale below 1, or another count than one fewer than the streams."""
    if len(scales) != num_streams - 1:
        raise ValueError(f"guidance has {len(scales)} scales for {num_streams} streams; accepted: one fewer than streams")
    if any(not scale >= 1 for scale in scales):
        raise ValueError(f"guidance is {tuple(scales)}; accepted: 1 (the condition as it is) or more")
