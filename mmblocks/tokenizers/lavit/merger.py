"""LaVIT's token selector and merger: which patches are kept, and what they take over from the others.

Shapes: B images, N patches, D width.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mmblocks.layers.attention.cross_attention import CrossAttentionLayer

_EPS = 1e-6
"""What a key that is not to be seen weighs against the largest: the published softmax never divides by zero."""


class TokenSelector(nn.Module):
    """Log-probabilities of keeping and dropping each patch, from the patch and the mean over the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim is {dim}; accepted: even widths, of which one half is averaged over the image")
        self.read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        halved = (nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU())
        self.decide = nn.Sequential(*halved, nn.Linear(dim // 4, 2), nn.LogSoftmax(dim=-1))

    def forward(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 2"]:
        """Channel 0 is keeping, 1 dropping."""
        own, other = self.read(patches).chunk(2, dim=-1)
        return self.decide(torch.cat([own, other.mean(dim=1, keepdim=True).expand_as(own)], dim=-1))


def keep_or_drop(scores: Float[Tensor, "B N 2"], noise: Float[Tensor, "B N 2"] | None) -> Float[Tensor, "B N"]:
    """One for each patch that is kept, zero for the others; gradients are those of the soft choice, at temperature one.

    Args:
        scores: log-probabilities of keeping and dropping.
        noise: Gumbel draws, which make it a sample; None for the likelier of the two.
    """
    noisy = scores.float() if noise is None else scores.float() + noise
    keep, drop = noisy.softmax(dim=-1).unbind(dim=-1)
    return (keep >= drop).to(keep.dtype) - keep.detach() + keep


def gumbel_noise(scores: Float[Tensor, "*N"], generator: Generator | None) -> Float[Tensor, "*N"]:
    """Draws of the standard Gumbel distribution, in float32, in the shape and on the device of ``scores``."""
    return -torch.empty_like(scores, dtype=torch.float32).exponential_(generator=generator).log()


class TokenMerger(nn.Module):
    """Kept patches see those kept before them, and read in what was dropped.

    Args:
        dim, num_layers, num_heads, mlp_dim: sizes.
    """

    def __init__(self, dim: int, num_layers: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(CrossAttentionLayer(dim, num_heads, mlp_dim) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, patches: Float[Tensor, "B N D"], keep: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """All patches, the dropped ones too, whose values mean nothing.

        Args:
            patches: features of the tower.
            keep: one or zero a patch; gradients flow into it.
        """
        count = patches.shape[1]
        own = torch.eye(count, dtype=keep.dtype, device=keep.device)
        # a dropped patch sees itself, so that its row of the softmax is not empty
        visible = (keep[:, None] + (1 - keep[:, None]) * own).tril()
        attend_self = partial(_attend_visible, visible=visible[:, None])
        attend_cross = partial(_attend_visible, visible=(1 - keep)[:, None, None])
        context = self.norm_in(patches)
        x = patches
        for layer in self.layers:
            x = layer(x, context, attend_self, attend_cross)
        return self.norm_out(x)


def _attend_visible(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention with a softmax whose weights are multiplied by ``visible``, which so has gradients.

    As published, the largest score is that of all keys, seen or not, and every key keeps a little: where none is to be seen, all
    weigh the same. No fused kernel does that.
    """
    scores = (query @ key.mT * query.shape[-1] ** -0.5).float()
    shown = (scores - scores.amax(dim=-1, keepdim=True)).exp() * visible.float()
    weights = (shown + _EPS / key.shape[-2]) / (shown.sum(dim=-1, keepdim=True) + _EPS)
    return weights.to(value.dtype) @ value
