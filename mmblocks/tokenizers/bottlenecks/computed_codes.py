"""Soft choices among codes that are computed from their numbers rather than stored.

Shapes: Q numbers a token, K codes of each, d width of a number's part of a code, D width of a feature.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.tokenizers.bottlenecks.full_precision import without_autocast


class ComputedCodes(nn.Module):
    """What ``Codebook.assign`` and ``Codebook.mix`` are, for a bottleneck that says what its codes are.

    All K codes of a number are written out for it, and a weight for each: meant for the codebooks of a few thousand codes that a
    language model chooses from.
    """

    def _compared(self, features: Float[Tensor, "*N D"]) -> Sequence[Float[Tensor, "*N d"]]:
        """Each number's part of the features, as they are compared with its codes."""
        raise NotImplementedError

    def _tables(self, device: torch.device) -> Sequence[Float[Tensor, "K d"]]:
        """Each number's codes, by number, in float32."""
        raise NotImplementedError

    def _projected(self, codes: Float[Tensor, "*N Qd"]) -> Float[Tensor, "*N D"]:
        """Vectors for the decoder, of codes side by side."""
        raise NotImplementedError

    @without_autocast
    def assign(self, features: Float[Tensor, "*N D"], temperature: float = 1.0) -> Float[Tensor, "*Q K"]:
        """A soft choice of codes, with weights that sum to one, for each number where a token has several.

        The softmax of negated squared distances over the temperature, in float32.

        Raises:
            ValueError: numbers of different sizes, whose weights have no common shape.
        """
        tables = self._tables(features.device)
        sizes = [len(table) for table in tables]
        if len(set(sizes)) > 1:
            raise ValueError(f"the numbers of a token choose among {sizes} codes; accepted: as many for each")
        weights = [
            ((2 * part @ table.T - table.square().sum(dim=-1)) / temperature).softmax(dim=-1)
            for part, table in zip(self._compared(features), tables, strict=True)
        ]
        return weights[0] if len(weights) == 1 else torch.stack(weights, dim=-2)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N2 D"]:
        """The mixture of codes with these weights, as ``assign`` gives them; with several numbers a token they are (*N, Q, K).

        Raises:
            ValueError: weights of another shape.
        """
        tables = self._tables(weights.device)
        wanted = (len(tables), len(tables[0])) if len(tables) > 1 else (len(tables[0]),)
        if tuple(weights.shape[-len(wanted) :]) != wanted:
            raise ValueError(f"weights have shape {tuple(weights.shape)}; accepted: (..., {', '.join(map(str, wanted))})")
        parts = weights.unbind(dim=-2) if len(tables) > 1 else [weights]
        return self._projected(torch.cat([part.float() @ table for part, table in zip(parts, tables, strict=True)], dim=-1))
