"""The head of masked discrete diffusion: codes that are hidden are predicted at their own places.

Shapes: N rows, D width, B images, L codes of an image, V codes.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.heads.language import LMHead
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, Masked, MaskedTokens
from mmblocks.support.deprecation import former_keywords


class MaskedTokenHead(LMHead):
    """Cross entropy on hidden codes, each predicted at its own place; images are found in a few passes.

    Hidden codes have the id ``vocab_size``: the first that is no code.

    Args:
        dim: D.
        vocab_size: V.
        path: what is hidden; ``MaskedTokens`` with cosine shares if None.
        sampler: how images are found; ``ConfidenceSampler()`` if None.
        init_std: of the initial weights.

    Source: MaskGIT (arXiv 2202.04200), MAGVIT (arXiv 2212.05199), 4M (arXiv 2312.06647), Show-o (arXiv 2408.12528).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MaskedTokenHead
        >>> head = MaskedTokenHead(dim=8, vocab_size=16)
        >>> ids = torch.randint(16, (2, 9))
        >>> masked = head.corrupt(ids, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(masked.ids, torch.where(masked.mask, 16, ids))
        True
        >>> tuple(head.loss(torch.randn(2, 9, 8)[masked.mask], ids[masked.mask]).shape) == (int(masked.mask.sum()),)
        True
    """

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int,
        path: MaskedTokens | None = None,
        sampler: ConfidenceSampler | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__(dim=dim, vocab_size=vocab_size, init_std=init_std)
        self.path = path or MaskedTokens(mask_id=vocab_size)
        self.sampler = sampler or ConfidenceSampler()

    def corrupt(
        self,
        ids: Int[Tensor, "B L"],
        *,
        t: Float[Tensor, " B"] | None = None,
        order: Float[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Masked:
        """Hides some codes of each image; see ``MaskedTokens.corrupt``. ``loss`` takes the places where ``mask`` is True."""
        return self.path.corrupt(ids, t=t, order=order, generator=generator)

    @former_keywords(drawn="sampled")
    def decode(
        self,
        predict: Callable[[Tensor, int], Tensor],
        ids: Int[Tensor, "B L"],
        *,
        sampled: Int[Tensor, "S B L"] | None = None,
        gumbel: Float[Tensor, "S B L"] | None = None,
        generator: Generator | None = None,
        allowed: Bool[Tensor, " V"] | None = None,
    ) -> Int[Tensor, "B L"]:
        """Fills hidden codes in, pass by pass; see ``ConfidenceSampler.sample``. ``predict`` runs the model around the head."""
        return self.sampler.sample(
            predict, ids, self.path.mask_id, sampled=sampled, gumbel=gumbel, generator=generator, allowed=allowed
        )
