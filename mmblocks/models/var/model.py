"""VAR with its tokenizer: classes to images.

Shapes: B images, H and W pixels, L tokens of all scales together, K codes.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.categorical import Sampling
from mmblocks.models.var.transformer import VAR
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.var.tokenizer import VARVQ


class VARImageModel(Block):
    """A tokenizer that goes from coarse to fine, and a trunk that predicts its scales.

    Args:
        tokenizer: pixels to codes and back.
        trunk: of as many codes, and the same scales.

    Raises:
        ValueError: a trunk of other codes or scales than the tokenizer's.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR), whose two parts are published apart.

    Examples:
        >>> import torch
        >>> from mmblocks.models import VAR, VARImageModel
        >>> from mmblocks.tokenizers import VARVQ
        >>> shared = {"num_codes": 16, "code_dim": 8, "scales": (1, 2, 4)}
        >>> tokenizer = VARVQ(channels=32, multipliers=(1, 1), num_blocks=1, **shared)
        >>> trunk = VAR(num_classes=10, dim=16, num_layers=1, num_heads=2, **shared)
        >>> model = VARImageModel(tokenizer=tokenizer, trunk=trunk).eval()
        >>> tuple(model.loss(torch.rand(2, 3, 8, 8), torch.tensor([3, 7])).shape), tuple(model.generate(torch.tensor([3])).shape)
        ((2, 21), (1, 3, 8, 8))
    """

    def __init__(self, *, tokenizer: VARVQ, trunk: VAR) -> None:
        super().__init__()
        codes = tokenizer.bottleneck
        theirs = (*codes.codes.shape, codes.scales)
        ours = (trunk.num_codes, trunk.code_dim, trunk.scales)
        if theirs != ours:
            raise ValueError(f"the trunk has (codes, width, scales) {ours}; accepted: the tokenizer's, {theirs}")
        self.tokenizer = tokenizer
        self.trunk = trunk

    def loss(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        labels: Int[Tensor, " B"],
        *,
        drop: Bool[Tensor, " B"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B L"]:
        """Cross entropy of every token; the tokenizer learns nothing.

        Args:
            pixels: in [0, 1].
            labels: classes.
            drop: see ``VAR.loss``.
            generator: source of randomness.
        """
        with torch.no_grad():
            ids = cast(Tensor, self.tokenizer.encode(pixels).ids)
            inputs = self.tokenizer.bottleneck.next_scale_inputs(ids)
        return self.trunk.loss(labels, inputs, ids, drop=drop, generator=generator)

    @torch.no_grad()
    def generate(
        self,
        labels: Int[Tensor, " B"],
        *,
        guidance: float = 1.5,
        sampling: Sampling | None = None,
        smooth: bool = False,
        gumbel: Sequence[Float[Tensor, "B _ K"]] | None = None,
        smoothing_gumbel: Sequence[Float[Tensor, "B _ K"]] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1]; see ``VAR.sample`` for the options."""
        made = self.trunk.sample(
            labels,
            self.tokenizer.bottleneck,
            guidance=guidance,
            sampling=sampling,
            smooth=smooth,
            gumbel=gumbel,
            smoothing_gumbel=smoothing_gumbel,
            generator=generator,
        )
        return self.tokenizer.decode(Latents(z=made.z, ids=made.ids))
