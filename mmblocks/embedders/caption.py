"""Caption features of a text encoder as conditions, and learned ones for "no caption"."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from mmblocks.block import Block


class CaptionEmbedding(Block):
    """Features of a frozen text encoder through a small MLP.

    Args:
        caption_dim: width of the features (T5-XL: 2048).
        dim: width.
        num_tokens: tokens of the longest caption: so many learned features stand for no caption.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import CaptionEmbedding
        >>> embedding = CaptionEmbedding(caption_dim=12, dim=8, num_tokens=5)
        >>> tuple(embedding(torch.randn(2, 5, 12)).shape)
        (2, 5, 8)
    """

    def __init__(self, *, caption_dim: int, dim: int, num_tokens: int = 120) -> None:
        super().__init__()
        self.caption_dim = caption_dim
        self.first = nn.Linear(caption_dim, dim, bias=False)
        self.second = nn.Linear(dim, dim, bias=False)
        # Fixed upstream too: a buffer, initialised once.
        self.register_buffer("unconditional", torch.randn(num_tokens, caption_dim) / caption_dim**0.5)

    def forward(self, features: Float[Tensor, "*N C"]) -> Float[Tensor, "*N D"]:
        """Features of the caption's tokens to vectors. For no caption, hand in rows of ``unconditional``.

        Raises:
            ValueError: features of another width.
        """
        if features.shape[-1] != self.caption_dim:
            raise ValueError(f"features have width {features.shape[-1]}; accepted: {self.caption_dim}")
        return self.second(gelu(self.first(features), approximate="tanh"))
