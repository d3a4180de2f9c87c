"""How near images are to each other, and how well a codebook is used.

Shapes: B images, H and W pixels, K codes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d

_RADIUS, _SIGMA = 5, 1.5
"""The Gaussian window of Wang et al.: 11 x 11."""

_MOST_CODES = 2**22
"""Larger codebooks are not counted: the counts alone would take more than 64 MB."""


def psnr(images: Float[Tensor, "B 3 H W"], others: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """The peak signal-to-noise ratio of each pair, in dB, for values in [0, 1]; infinite where they are equal."""
    return -10 * (images - others).square().flatten(1).mean(dim=1).log10()


def ssim(images: Float[Tensor, "B 3 H W"], others: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """The structural similarity of each pair, for values in [0, 1]; 1 where they are equal.

    Means and population variances under a Gaussian window of deviation 1.5, cut at 11 x 11; averaged over colours and the
    places where the whole window lies inside.

    Raises:
        ValueError: a side of less than 11 pixels.

    Source: Wang et al., Image Quality Assessment (2004).
    """
    size = 2 * _RADIUS + 1
    if min(images.shape[-2:]) < size:
        raise ValueError(f"images are {images.shape[-2]}x{images.shape[-1]}; accepted: sides of at least {size} for SSIM")
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _smooth(images), _smooth(others)
    variance_a = _smooth(images.square()) - mean_a.square()
    variance_b = _smooth(others.square()) - mean_b.square()
    covariance = _smooth(images * others) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def perplexity(counts: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    """How many codes there seem to be: exp of the entropy of their use; K where all are used alike, 0 where nothing was counted."""
    share = counts / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp() * (counts.sum() > 0)


class CodeUsage:
    """Counts how often each code is chosen, over a window of batches and the window before.

    Args:
        codebook_sizes: codes for each of the Q numbers of a token. Numbers out of more than four million are not counted.
        device: where the ids are.
        window: batches after which ``is_full`` is true.

    Attributes:
        counts: by codebook, (2, K): of this window, and of the one before.
        num_batches: counted in this window.
    """

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device, *, window: int = 100) -> None:
        self.window = window
        self.num_batches = 0
        self.counts = {
            book: torch.zeros(2, size, dtype=torch.long, device=device)
            for book, size in enumerate(codebook_sizes)
            if size <= _MOST_CODES
        }
        self._num_books = len(codebook_sizes)

    def add(self, ids: Int[Tensor, "B *grid_or_q"], lengths: Int[Tensor, " B"] | None = None) -> None:
        """Counts a batch of ids, (B, *grid), or (B, *grid, Q) where a token has Q numbers. Negative ones stand for nothing.

        Args:
            ids: as in ``Latents``.
            lengths: tokens of each row, where they differ; what is after them is padding.
        """
        if lengths is not None:
            place = torch.arange(ids.shape[1], device=ids.device)
            inside = place < lengths[:, None]
            ids = torch.where(inside.view(*inside.shape, *[1] * (ids.ndim - 2)), ids, -1)
        for book, counts in self.counts.items():
            chosen = (ids if self._num_books == 1 else ids[..., book]).flatten().long()
            counts[0].index_add_(0, chosen.clamp(min=0), (chosen >= 0).long())
        self.num_batches += 1

    @property
    def is_full(self) -> bool:
        """Whether the window's batches have been counted."""
        return self.num_batches >= self.window

    def roll(self) -> None:
        """Begins a new window; this one becomes the one before."""
        for counts in self.counts.values():
            counts.copy_(torch.stack([torch.zeros_like(counts[0]), counts[0]]))
        self.num_batches = 0

    def clear(self) -> None:
        """Forgets all counts."""
        for counts in self.counts.values():
            counts.zero_()
        self.num_batches = 0

    def figures(self) -> dict[str, Tensor]:
        """``usage``, the share of codes chosen at all, and ``perplexity``, over both windows; means over codebooks."""
        if not self.counts:
            return {}
        both = [counts.sum(dim=0) for counts in self.counts.values()]
        usage = torch.stack([(counts > 0).float().mean() for counts in both]).mean()
        return {"usage": usage, "perplexity": torch.stack([perplexity(counts) for counts in both]).mean()}


def _smooth(images: Tensor) -> Tensor:
    """Gaussian means, without the margin: (B, 3, H - 10, W - 10)."""
    place = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weights = (-0.5 * (place / _SIGMA).square()).exp()
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    across = conv2d(images, weights, groups=images.shape[1])
    return conv2d(across, weights.mT, groups=images.shape[1])
