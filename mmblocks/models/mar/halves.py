"""The two stacks of layers of a MAR.

Shapes: D width of the encoder, D2 of the decoder.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from torch import nn


class HalvesArguments(TypedDict, total=False):
    """The arguments of ``Halves``, for the signature of ``MAR``."""

    encoder_dim: int
    encoder_layers: int
    encoder_heads: int
    decoder_dim: int
    decoder_layers: int
    decoder_heads: int
    mlp_ratio: float
    norm_eps: float
    dropout: float


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Sizes of encoder and decoder.

    Attributes:
        encoder_dim, encoder_layers, encoder_heads: D, layers and heads of the encoder.
        decoder_dim, decoder_layers, decoder_heads: D2, layers and heads of the decoder.
        mlp_ratio: inner width of the feed-forward layers over the width.
        norm_eps: of the layer norms.
        dropout: on attention and projections, while training.
    """

    encoder_dim: int
    encoder_layers: int
    encoder_heads: int
    decoder_dim: int
    decoder_layers: int
    decoder_heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    dropout: float = 0.1

    def encoder(self) -> nn.ModuleList:
        """The encoder's layers."""
        return self._stack(self.encoder_dim, self.encoder_layers, self.encoder_heads)

    def decoder(self) -> nn.ModuleList:
        """The decoder's."""
        return self._stack(self.decoder_dim, self.decoder_layers, self.decoder_heads)

    def _stack(self, dim: int, count: int, heads: int) -> nn.ModuleList:
        from timm.models.vision_transformer import Block as Layer  # here, since importing timm takes seconds

        norm = partial(nn.LayerNorm, eps=self.norm_eps)
        options: dict[str, Any] = {"mlp_ratio": self.mlp_ratio, "qkv_bias": True, "norm_layer": norm}
        return nn.ModuleList(Layer(dim, heads, proj_drop=self.dropout, attn_drop=self.dropout, **options) for _ in range(count))
