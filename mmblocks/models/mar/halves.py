"""The two stacks of layers of a MAR.

Shapes: D width of the encoder, D2 of the decoder.
"""

from dataclasses import dataclass
from typing import TypedDict

from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.masked_autoencoder import MaskedAutoencoder
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP
from mmblocks.trunks.parts.norms import Norm


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

    def trunk(self, num_positions: int) -> MaskedAutoencoder:
        """Both, for rows of so many tokens."""
        encoder = self._stack(self.encoder_dim, self.encoder_layers, self.encoder_heads)
        decoder = self._stack(self.decoder_dim, self.decoder_layers, self.decoder_heads)
        return MaskedAutoencoder(encoder=encoder, decoder=decoder, num_positions=num_positions)

    def _stack(self, dim: int, count: int, heads: int) -> Decoder:
        layer = Layer(
            mixer=Attention(num_heads=heads, qkv_bias=True, output_bias=True, rotary=None, dropout=self.dropout),
            feed_forward=MLP(hidden_dim=int(dim * self.mlp_ratio), activation="gelu", dropout=self.dropout),
            norm=Norm(kind="layer", eps=self.norm_eps, bias=True),
        )
        return Decoder(dim=dim, num_layers=count, layers=layer)
