"""Guidance of whole spans along a path: at some of its times alone, and no longer than the prediction under the whole condition.

Shapes: G streams, N tokens of all spans, X channels of a token, V ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Renorm = Literal["global", "channel", "text_channel"]
"""Over what a guided prediction is shortened; see ``NestedGuidance``."""

_SMALL = 1e-8


@runtime_checkable
class TimedGuidance(Protocol):
    """A guidance of whole spans that asks at which time of their path, and which tokens are one span."""

    def guided(self, predictions: Float[Tensor, "G N X"], time: float, counts: Sequence[int]) -> Float[Tensor, "N X"]:
        """The guided prediction.

        Args:
            predictions: of all streams.
            time: what the network was told.
            counts: tokens of each span.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NestedGuidance:
    """Streams with everything, without the text, and without the images; the text is guided inside of the images.

    ``t = n + scale * (c - n)``, then ``i + image_scale * (t - i)``, where n is the stream without the text and i that without
    the images, which still has the text. ``ThreeWay``, whose third stream has neither, is another rule. What comes out is then
    shortened to the length of c, where it is longer.

    Args:
        scale: of the text; up to 1 nothing is guided, the images neither.
        image_scale: of the images; up to 1 they are not. None for two streams, with everything and without the text.
        interval: the times, above the first and up to the second, at which anything is guided. They are the network's own: in BAGEL
            1 is noise, and the times are those that the shift has moved.
        renorm: over what lengths are taken: "global", a whole span; "channel", each token; "text_channel", each token, after the
            text and before the images, so that what the images add is not shortened.
        renorm_min: the least factor; 1 shortens nothing.
        images_only: whether streams after the first skip text that is written before the image; see ``Guidance``.

    Raises:
        ValueError: numbers that are not finite or out of range, or another ``renorm``.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel), whose "global" is over the only span that it writes at once.

    Examples:
        >>> import torch
        >>> from mmblocks.generation import NestedGuidance
        >>> velocities = torch.randn(2, 6, 4)  # with everything and without the text, for the tokens of two spans
        >>> guidance = NestedGuidance(scale=4.0, interval=(0.4, 1.0))
        >>> bool(guidance.guided(velocities, 0.9, (2, 4)).norm() <= velocities[0].norm() * 1.001)
        True
        >>> torch.equal(guidance.guided(velocities, 0.4, (2, 4)), velocities[0])
        True
    """

    scale: float
    image_scale: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Renorm = "global"
    renorm_min: float = 0.0
    images_only: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "image_scale"):
            value = vars(self)[name]
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; accepted: a finite number")
        if len(self.interval) != 2 or not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval is {self.interval}; accepted: two times, the second no smaller")
        if self.renorm not in get_args(Renorm):
            raise ValueError(f"renorm is {self.renorm!r}; accepted: {', '.join(map(repr, get_args(Renorm)))}")
        if not 0 <= self.renorm_min <= 1:
            raise ValueError(f"renorm_min is {self.renorm_min}; accepted: 0 to 1")

    @property
    def num_streams(self) -> int:
        """Three, or two without ``image_scale``."""
        return 2 if self.image_scale is None else 3

    def combine(self, logits: Float[Tensor, "S N V"], step: int) -> Float[Tensor, "N V"]:
        """Of ids, where these are guided: the same rule on log probabilities, which have no time and no length."""
        streams = logits.log_softmax(dim=-1)
        return streams[0] if self.scale <= 1 else self._with_images(self._with_text(streams), streams)

    def guided(self, predictions: Float[Tensor, "G N X"], time: float, counts: Sequence[int]) -> Float[Tensor, "N X"]:
        """The guided prediction; see ``TimedGuidance``."""
        first, last = self.interval
        condition = predictions[0]
        if self.scale <= 1 or not first < time <= last:
            return condition
        by_text = self._with_text(predictions)
        if self.renorm == "text_channel":
            return self._with_images(self._shortened(by_text, condition), predictions)
        both = self._with_images(by_text, predictions)
        if self.renorm == "channel":
            return self._shortened(both, condition)
        spans = zip(both.split(tuple(counts)), condition.split(tuple(counts)), strict=True)
        return torch.cat([self._shortened(one.flatten(), own.flatten()).view_as(one) for one, own in spans])

    def _with_text(self, streams: Float[Tensor, "G N X"]) -> Float[Tensor, "N X"]:
        return streams[1] + self.scale * (streams[0] - streams[1])

    def _with_images(self, guided: Float[Tensor, "N X"], streams: Float[Tensor, "G N X"]) -> Float[Tensor, "N X"]:
        if self.image_scale is None or self.image_scale <= 1:
            return guided
        return streams[2] + self.image_scale * (guided - streams[2])

    def _shortened(self, guided: Float[Tensor, "*N X"], condition: Float[Tensor, "*N X"]) -> Float[Tensor, "*N X"]:
        """No longer than the condition, along the last axis."""
        factor = condition.norm(dim=-1, keepdim=True) / (guided.norm(dim=-1, keepdim=True) + _SMALL)
        return guided * factor.clamp(self.renorm_min, 1.0)
