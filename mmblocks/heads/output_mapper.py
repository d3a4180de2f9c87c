"""From a trunk's states to the condition of another generator, such as a diffusion model's text embeddings.

Shapes: B rows, Q queries, N tokens of the condition, D width of the trunk, C width of the condition.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.losses.row_losses import check_shape, weighted
from mmblocks.support.checks import check_finite


class OutputMapper(Block):
    """Learned queries read the states of an image's tokens and become the condition.

    The trunk may have read learned queries of its own (GILL's ``[IMG]`` tokens, DreamLLM's dream queries), whose embeddings are
    ``Placeholders``, or regressed embeddings (Nexus-Gen): their states are what is read here.

    Args:
        dim: D.
        condition_dim: C: 768 for Stable Diffusion 1.5, 1024 for 2.1, 2048 for XL.
        num_tokens: N: 77 for Stable Diffusion. None maps states one by one, without attention.
        width: of the transformer.
        num_layers: encoder and decoder layers each; 0, with ``num_tokens`` None, for a linear map alone (DreamLLM).
        num_heads: of the attention.

    As a head of a ``MultimodalModel``, which hands over states one by one, it maps each to one token of the condition, with
    ``num_tokens`` None. Where queries read all states of an image, call it with these: ``mapper.loss(output.hidden[...], target)``.

    Raises:
        ValueError: ``num_tokens`` without layers, or sizes that do not go together.

    Source: GILLMapper of GILL (arXiv 2305.17216), DreamLLM (arXiv 2309.11499), Nexus-Gen (arXiv 2504.21356).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import OutputMapper
        >>> mapper = OutputMapper(dim=16, condition_dim=12, num_tokens=7, width=8, num_layers=1, num_heads=2)
        >>> tuple(mapper(torch.randn(2, 4, 16)).shape)
        (2, 7, 12)
    """

    def __init__(
        self,
        *,
        dim: int,
        condition_dim: int,
        num_tokens: int | None = 77,
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if min(dim, condition_dim) < 1 or (num_tokens is not None and num_tokens < 1):
            raise ValueError(f"dim is {dim}, condition_dim {condition_dim}, num_tokens {num_tokens}; accepted: 1 or more each")
        if num_tokens is not None and (num_heads < 1 or width < 1 or width % num_heads):
            raise ValueError(f"width is {width}, num_heads {num_heads}; accepted: a width that is a multiple of the heads")
        if num_tokens is not None and num_layers < 1:
            raise ValueError(f"num_tokens is {num_tokens} with num_layers {num_layers}; accepted: 1 layer or more, or None")
        self.condition_dim, self.num_tokens = condition_dim, num_tokens
        self.queries = None
        if num_tokens is None:
            self.input: nn.Module = nn.Identity()
            self.transformer = None
            self.output = nn.Linear(dim, condition_dim)
            return
        self.input = nn.Linear(dim, width)
        self.queries = nn.Parameter(torch.empty(num_tokens, width).normal_(std=0.02))
        sizes: dict[str, Any] = {"dim_feedforward": 4 * width, "dropout": 0.0, "norm_first": True, "batch_first": True}
        self.transformer = nn.Transformer(
            width,
            num_heads,
            # Nested tensors, torch's default, do not go with norms before the layers.
            custom_encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(width, num_heads, **sizes), num_layers, nn.LayerNorm(width), enable_nested_tensor=False
            ),
            num_decoder_layers=num_layers,
            **sizes,
        )
        self.output = nn.Linear(width, condition_dim)

    def forward(self, hidden: Float[Tensor, "*B Q D"]) -> Float[Tensor, "*B N C"]:
        """States of each image's tokens to its condition; with ``num_tokens`` None states one by one, (Q, D), too.

        Raises:
            TypeError: states one by one for queries, which read all states of an image.
        """
        if hidden.ndim == 2 and self.num_tokens is not None:
            reason = f"its {self.num_tokens} queries read all states of an image"
            accepted = "(B, Q, D), or num_tokens=None to map states one by one, as a head of a MultimodalModel"
            raise TypeError(f"hidden has shape {tuple(hidden.shape)}, and {reason}; accepted: {accepted}")
        hidden = self.input(hidden)
        if self.transformer is not None and self.queries is not None:
            hidden = self.transformer(hidden, self.queries.expand(len(hidden), -1, -1))
        mapped: Tensor = self.output(hidden)
        return mapped

    def loss(
        self, hidden: Float[Tensor, "B *Q D"], target: Float[Tensor, "B *N C"], weight: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Mean squared distance from the condition that the generator's own encoder gives, an image a row, in float32.

        With ``num_tokens`` None a row may be one state (B, D), with one token of the condition as its target.

        Raises:
            TypeError: as ``forward``.
            ValueError: shapes that do not fit, or conditions that are not finite (checked on CPU).
        """
        mapped = self(hidden)
        if target.shape != mapped.shape:
            raise ValueError(f"target has shape {tuple(target.shape)}; accepted: {tuple(mapped.shape)}")
        check_finite("target", target)
        if weight is not None:
            check_shape("weight", weight, (len(hidden),))
        return weighted((mapped.float() - target.float()).square().flatten(1).mean(dim=1), weight)

    def sample(self, hidden: Float[Tensor, "B *Q D"], *, generator: Generator | None = None) -> Float[Tensor, "B *N C"]:
        """The condition; nothing is random. Shapes and errors as for ``loss``."""
        mapped: Tensor = self(hidden)
        return mapped
