"""A codebook that learns by gradients: the two-term loss and the straight-through estimator of VQ-VAE.

Shapes: N vectors, K codes, D width, any leading axes where "*".
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import embedding, mse_loss

from mmblocks.ops.nearest_code import nearest_code


class Quantized(NamedTuple):
    """Vectors replaced by codes.

    Attributes:
        vectors: the codes' vectors; gradients pass straight through to what was quantised.
        ids: the codes' numbers.
        codebook_loss: pulls codes to the vectors that chose them.
        commitment_loss: pulls vectors to the codes they chose.
    """

    vectors: Float[Tensor, "*N D"]
    ids: Int[Tensor, "*N"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of K learned codes.

    Args:
        num_codes: K.
        dim: D.

    Source: VQ-VAE (arXiv 1711.00937).
    """

    def __init__(self, *, num_codes: int, dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(num_codes, dim))
        nn.init.uniform_(self.codes, -1 / num_codes, 1 / num_codes)

    def forward(self, x: Float[Tensor, "*N D"]) -> Quantized:
        """Quantises the last axis.

        Raises:
            ValueError: if a value is not finite: it would spoil the codebook for good.
        """
        if not torch.compiler.is_compiling() and not x.isfinite().all():
            raise ValueError("the vectors to quantise hold NaN or infinity; nothing was learned from them")
        ids = nearest_code(x.flatten(0, -2), self.codes).view(x.shape[:-1])
        chosen = self.lookup(ids)
        return Quantized(
            vectors=x + (chosen - x).detach(),
            ids=ids,
            codebook_loss=mse_loss(chosen, x.detach()),
            commitment_loss=mse_loss(x, chosen.detach()),
        )

    def lookup(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number.

        Raises:
            ValueError: if a number is outside [0, K) (checked on CPU).
        """
        if ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= len(self.codes):
                raise ValueError(f"ids lie in [{low}, {high}]; accepted: [0, {len(self.codes) - 1}]")
        return embedding(ids, self.codes)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "N D"], *, num_iterations: int = 10, generator: Generator | None = None) -> None:
        """Moves all codes to the centres of clusters of ``x``, by k-means; a cluster that is empty takes a vector of ``x``.

        Raises:
            ValueError: if there are fewer vectors than codes, or a value is not finite.
        """
        count = len(self.codes)
        if len(x) < count or not x.isfinite().all():
            raise ValueError(f"x holds {len(x)} vectors; accepted: at least {count}, all finite")
        self.codes.copy_(x[torch.randperm(len(x), generator=generator, device=x.device)[:count]])
        for _ in range(num_iterations):
            ids = nearest_code(x, self.codes)
            used = torch.bincount(ids, minlength=count)
            centres = torch.zeros_like(self.codes).index_add_(0, ids, x.to(self.codes.dtype)) / used.clamp(min=1)[:, None]
            self.codes.copy_(centres)
            self.replace_unused(x, used, generator)

    @torch.no_grad()
    def replace_unused(self, x: Float[Tensor, "N D"], used: Int[Tensor, " K"], generator: Generator | None = None) -> int:
        """Moves codes that nothing chose to vectors drawn from ``x``; returns how many.

        Args:
            x: vectors as the encoder makes them now.
            used: how often each code was chosen of late.
            generator: source of randomness.
        """
        unused = (used == 0).nonzero().flatten()
        drawn = torch.randint(len(x), (len(unused),), generator=generator, device=x.device)
        self.codes[unused] = x[drawn].to(self.codes.dtype)
        return len(unused)
