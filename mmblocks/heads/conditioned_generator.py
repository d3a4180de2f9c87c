"""Image generators as a head needs them: what is called with conditions, to learn and to write.

Shapes: S images, M conditions of width C.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from mmblocks.sequence.spans import Guide


@runtime_checkable
class ConditionedGenerator(Protocol):
    """An image generator, as the head needs it: ``pixels.StateGenerator`` and others of its kind."""

    @property
    def condition_dim(self) -> int:
        """C."""
        ...

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that it cannot make."""
        ...

    def times_and_noise(
        self, count: int, size: tuple[int, int], *, device: torch.device, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is random in the loss of so many images of one size."""
        ...

    def loss(
        self,
        conditions: Float[Tensor, "S M C"],
        images: Float[Tensor, "S 3 H W"],
        *,
        t: Tensor,
        noise: Tensor,
    ) -> Float[Tensor, " S"]:
        """One loss an image, in float32."""
        ...

    def sample_guided(
        self,
        streams: Sequence[Float[Tensor, "S M C"]],
        guide: Guide,
        *,
        size: tuple[int, int],
        noise: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "S 3 H W"]:
        """Images from conditions of several streams."""
        ...


@runtime_checkable
class MaskedGenerator(ConditionedGenerator, Protocol):
    """One whose images may have different numbers of conditions, as whole documents are."""

    def loss(
        self,
        conditions: Float[Tensor, "S M C"],
        images: Float[Tensor, "S 3 H W"],
        *,
        real: Bool[Tensor, "S M"] | None = None,
        t: Tensor,
        noise: Tensor,
    ) -> Float[Tensor, " S"]:
        """One loss an image, of the conditions that are real."""
        ...

    def sample_guided(
        self,
        streams: Sequence[Float[Tensor, "S M C"]],
        guide: Guide,
        *,
        size: tuple[int, int],
        reals: Sequence[Bool[Tensor, "S M"] | None] | None = None,
        noise: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "S 3 H W"]:
        """Images from the real conditions of several streams."""
        ...
