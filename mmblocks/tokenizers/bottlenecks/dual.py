"""Two bottlenecks side by side, one for pixels and one for meaning, each with its own slice of the features.

Shapes: B images, D width of both slices, Q codes of both.
"""

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mmblocks.block import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, check_in_all, wrong_width


class _Part(Protocol):
    """What is needed of either bottleneck."""

    dim: int

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...

    def __call__(self, features: Tensor, **draws: object) -> Latents: ...

    def lookup(self, ids: Tensor) -> Tensor: ...


class DualBottleneck(Block):
    """The first slice of the features goes through one bottleneck, the rest through another; codes and vectors are side by side.

    Losses while training carry the name of their part: ``pixel_commitment``, ``semantic_commitment``.

    Args:
        pixel, semantic: bottlenecks with an attribute ``dim``, the width of their slice, and several codes a token, such as
            ``RQBottleneck`` or ``MultiCodebook``.

    Source: DualToken (arXiv 2503.14324).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import DualBottleneck, RQBottleneck
        >>> pixel, semantic = RQBottleneck(num_codes=16, dim=4, depth=2), RQBottleneck(num_codes=8, dim=6, depth=1)
        >>> bottleneck = DualBottleneck(pixel=pixel, semantic=semantic).eval()
        >>> features = torch.randn(1, 2, 2, 4 + 6)
        >>> latents = bottleneck(features)
        >>> tuple(latents.ids.shape), bottleneck.codebook_sizes
        ((1, 2, 2, 3), (16, 16, 8))
        >>> torch.equal(latents.z[..., :4], pixel(features[..., :4]).z)
        True
    """

    def __init__(self, *, pixel: Block, semantic: Block) -> None:
        super().__init__()
        self.pixel = cast("_Part", pixel)
        self.semantic = cast("_Part", semantic)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Those of the pixels, then those of the meaning."""
        return (*self.pixel.codebook_sizes, *self.semantic.codebook_sizes)

    @property
    def dims(self) -> tuple[int, int]:
        """Widths of the two slices."""
        return self.pixel.dim, self.semantic.dim

    def forward(self, features: Float[Tensor, "B *grid D"], **draws: object) -> Latents:
        """Quantises both slices of the last axis; ids are (B, *grid, Q).

        Args:
            features: those for pixels, then those for meaning.
            draws: handed to both.

        Raises:
            ValueError: features of another width, a value that is not finite (while parts learn, of any process), or what the
                bottlenecks refuse.
        """
        # Most parts say nothing of it.
        together = self.training and any(getattr(part, "learns_together", False) for part in self.modules())
        (check_in_all if together else check)(features, wrong_width(features, sum(self.dims)))  # before either part learns
        pixel_features, semantic_features = features.split(self.dims, dim=-1)
        pixel, semantic = self.pixel(pixel_features, **draws), self.semantic(semantic_features, **draws)
        return Latents(
            z=torch.cat([pixel.z, semantic.z], dim=-1),
            ids=torch.cat([cast("Tensor", pixel.ids), cast("Tensor", semantic.ids)], dim=-1),
            loss=_named("pixel", pixel.loss) | _named("semantic", semantic.loss) if self.training else None,
        )

    def lookup(self, ids: Integer[Tensor, "B *grid Q"]) -> Float[Tensor, "B *grid2 D"]:
        """The vectors of both, side by side.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another number of codes than Q in the last axis, or one that does not exist (checked on CPU).
        """
        counts = (len(self.pixel.codebook_sizes), len(self.semantic.codebook_sizes))
        if ids.shape[-1] != sum(counts):
            raise ValueError(
                f"ids have {ids.shape[-1]} codes a token (last axis); accepted: {sum(counts)}, {counts[0]} of them for pixels"
            )
        pixel, semantic = ids.split(counts, dim=-1)
        return torch.cat([self.pixel.lookup(pixel), self.semantic.lookup(semantic)], dim=-1)


def _named(part: str, losses: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    return {f"{part}_{name}": loss for name, loss in (losses or {}).items()}
