"""LaVIT's bottleneck: from all patches of an image to the codes of a few.

Shapes: B images, M tokens of the tower, N = M - 1 patches, D their width, L kept patches of the image that keeps most, d width of a
code.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from mmblocks.block import Block
from mmblocks.sequence.tokens import PADDING, Latents
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check_finite
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.lavit.merger import TokenMerger, TokenSelector, gumbel_noise, keep_or_drop


class LaVITBottleneck(Block):
    """A selector draws which patches are kept, a merger moves into them what the others said, and each becomes a code.

    Losses while training, unweighted: those of ``VectorQuantizer``, and "rate", the squared difference between ``keep_rate`` and
    the share of an image's patches that is kept.

    Args:
        num_codes, code_dim: size of the codebook. Features are scaled to length one before it, codes are used as they are.
        dim: D, even, and a multiple of ``num_heads``.
        num_layers, num_heads, mlp_dim: of the merger.
        keep_rate: share of patches to be kept.

    Source: LaVIT (arXiv 2309.04669; jy0205/LaVIT).
    """

    def __init__(
        self,
        *,
        num_codes: int = 16384,
        code_dim: int = 32,
        dim: int = 1408,
        num_layers: int = 12,
        num_heads: int = 16,
        mlp_dim: int = 6144,
        keep_rate: float = 1 / 3,
    ) -> None:
        super().__init__()
        self.keep_rate = keep_rate
        self.selector = TokenSelector(dim)
        self.merger = TokenMerger(dim, num_layers, num_heads, mlp_dim)
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim))
        self.quantizer = VectorQuantizer(num_codes=num_codes, dim=code_dim)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: how many codes there are."""
        return self.quantizer.codebook_sizes

    def forward(
        self,
        features: Float[Tensor, "B M D"],
        *,
        gumbel: Float[Tensor, "B N 2"] | None = None,
        generator: Generator | None = None,
        deterministic: bool = False,
    ) -> Latents:
        """A tower's class token, which is not used, and patches, to the codes of the patches that are kept.

        Which are kept is drawn at random, as published in evaluation too.

        Args:
            features: of the tower.
            gumbel: the draws, for keeping and for dropping each patch.
            generator: where they come from if they are not given.
            deterministic: keep what is likelier kept than dropped, without any draw.

        Returns:
            ``ids`` (B, L) and ``positions`` (B, L), the numbers of the kept patches row by row, in that order, filled up with
            ``PADDING``, -1; ``z`` and ``features``, what the merger made of them, filled up with zeros; ``lengths`` (B,).

        Raises:
            ValueError: draws of another shape, or together with ``deterministic``; a feature that is not finite.
        """
        patches = features[:, 1:]
        decision = self.decide(patches, gumbel=gumbel, generator=generator, deterministic=deterministic)
        keep = decision.detach() > 0.5
        image, patch = keep.nonzero(as_tuple=True)
        merged = self.merger(patches, decision)[image, patch]
        quantized = self.quantizer(normalize(self.project(merged), dim=-1))
        lengths = keep.sum(dim=1)
        place = (image, keep.cumsum(dim=1)[image, patch] - 1)
        fill_up = partial(_filled_up, place=place, size=(len(keep), int(lengths.max())))
        return Latents(
            z=fill_up(quantized.z, 0),
            ids=fill_up(quantized.ids, PADDING),
            loss=self._losses(quantized.loss, decision) if self.training else None,
            features=fill_up(merged, 0),
            lengths=lengths,
            positions=fill_up(patch, PADDING),
        )

    def decide(
        self,
        patches: Float[Tensor, "B N D"],
        *,
        gumbel: Float[Tensor, "B N 2"] | None = None,
        generator: Generator | None = None,
        deterministic: bool = False,
    ) -> Float[Tensor, "B N"]:
        """One for each patch that is kept, zero for the others, with the gradients of a soft choice; arguments as ``forward``."""
        scores = self.selector(patches)
        check_finite(scores)  # the quantiser sees only what is kept
        return keep_or_drop(scores, _noise(scores, gumbel, generator, deterministic))

    def lookup(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N d"]:
        """Codes by number; zeros for ``PADDING``.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number that is neither in [0, K) nor padding (checked on CPU).
        """
        real = ids != PADDING
        return self.quantizer.lookup(ids.where(real, 0)) * real[..., None]

    def _losses(self, losses: dict[str, Tensor], decision: Tensor) -> dict[str, Tensor]:
        if not (decision.detach() > 0.5).any():  # means over nothing
            losses = {name: torch.zeros_like(loss) for name, loss in losses.items()}
        return {**losses, "rate": (decision.mean(dim=1) - self.keep_rate).square().mean()}


def _noise(scores: Tensor, gumbel: Tensor | None, generator: Generator | None, deterministic: bool) -> Tensor | None:
    if deterministic:
        if gumbel is not None or generator is not None:
            raise ValueError("deterministic is True and draws are given; accepted: one of the two")
        return None
    if gumbel is None:
        return gumbel_noise(scores, generator)
    if gumbel.shape != scores.shape:
        raise ValueError(f"gumbel has shape {tuple(gumbel.shape)}; accepted: {tuple(scores.shape)}, of keeping and dropping")
    return gumbel


def _filled_up(items: Tensor, filling: float, place: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Items in their places, (image, number), of a table that holds ``filling`` elsewhere."""
    return items.new_full((*size, *items.shape[1:]), filling).index_put(place, items)
