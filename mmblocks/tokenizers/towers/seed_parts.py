"""SEED's bottleneck and decoder.

Shapes: B images, L tokens of the tower, C their width, Q queries, D width of the Q-Former, d width of a code, E width of an image
embedding.
"""

from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Literal, Unpack, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.attention.query_transformer import QFormer, QFormerArguments, QFormerSizes
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer

ImageHead = Literal["mlp", "qformer"]


CAUSAL = partial(QFormerSizes, causal=True)
"""Sizes of SEED's Q-Former."""


class SEEDBottleneck(Block):
    """A causal Q-Former turns a tower's features into Q tokens in order, each of which then becomes a code.

    Args:
        num_codes, code_dim: size of the codebook.
        encoder_dim: C.
        dim: D.
        sizes: the arguments of ``QFormerSizes``, causal unless told otherwise.

    Source: SEED (arXiv 2307.08041; AILab-CVC/SEED).
    """

    shorthand = staticmethod(CAUSAL)

    def __init__(
        self,
        *,
        num_codes: int = 8192,
        code_dim: int = 32,
        encoder_dim: int = 1408,
        dim: int = 768,
        **sizes: Unpack[QFormerArguments],
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder_dim)
        self.qformer = QFormer(dim=dim, context_dim=encoder_dim, **asdict(CAUSAL(**sizes)))
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim))
        self.quantizer = VectorQuantizer(num_codes=num_codes, dim=code_dim)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: how many codes there are."""
        return self.quantizer.codebook_sizes

    def forward(self, features: Float[Tensor, "B L C"]) -> Latents:
        """Tokens of the tower, class token included, to codes (B, Q); ``features`` of the result is what the Q-Former read.

        Raises:
            ValueError: if a value is not finite.
        """
        read = self.qformer(self.norm(features))
        return self.quantizer(self.project(read))._replace(features=read)

    def lookup(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N d"]:
        """Codes by number.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU).
        """
        return self.quantizer.lookup(ids)


class SEEDDecoder(Block):
    """Codes to the embedding of the image in CLIP's space, from which a diffusion model may paint; no pixels.

    Args:
        code_dim: d.
        num_queries: Q.
        dim: D.
        num_layers, num_heads: of the transformer between codes and embedding, and of that between codes and ``features``.
        embed_dim: E.
        head: "mlp" narrows each token and puts them side by side; "qformer" lets one query read them, as the published
            training script does.
        reader_layers, reader_heads, reader_mlp_dim, cross_attention_every: of that ``QFormer``.

    Source: SEED (arXiv 2307.08041; AILab-CVC/SEED).
    """

    def __init__(
        self,
        *,
        code_dim: int = 32,
        num_queries: int = 32,
        dim: int = 768,
        num_layers: int = 4,
        num_heads: int = 12,
        embed_dim: int = 1024,
        head: ImageHead = "mlp",
        reader_layers: int = 12,
        reader_heads: int = 12,
        reader_mlp_dim: int = 3072,
        cross_attention_every: int = 2,
    ) -> None:
        super().__init__()
        self.shape = (num_queries, code_dim)
        self.expand = nn.Sequential(nn.Linear(code_dim, code_dim), nn.Tanh(), nn.Linear(code_dim, dim))
        self.to_image = _Transformer(num_queries, dim, num_layers, num_heads)
        self.to_features = _Transformer(num_queries, dim, num_layers, num_heads)
        self.head: nn.Module
        if head == "mlp":
            self.head = _NarrowingHead(num_queries, dim, embed_dim)
        elif head == "qformer":
            reader = QFormer(
                num_queries=1,
                dim=dim,
                context_dim=dim,
                num_layers=reader_layers,
                num_heads=reader_heads,
                mlp_dim=reader_mlp_dim,
                cross_attention_every=cross_attention_every,
            )
            self.head = _ReadingHead(reader, dim, embed_dim)
        else:
            raise ValueError(f"head is {head!r}; accepted: 'mlp', 'qformer'")

    def forward(self, z: Float[Tensor, "B Q d"]) -> Float[Tensor, "B E"]:
        """The image's embedding.

        Raises:
            ValueError: another number or width of tokens.
        """
        return self.head(self.to_image(self._expanded(z)))

    def features(self, z: Float[Tensor, "B Q d"]) -> Float[Tensor, "B Q D"]:
        """What the Q-Former read, rebuilt: for training alone.

        Raises:
            ValueError: another number or width of tokens.
        """
        return self.to_features(self._expanded(z))

    def _expanded(self, z: Tensor) -> Tensor:
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"z has shape {tuple(z.shape)}; accepted: (B, {self.shape[0]}, {self.shape[1]})")
        return self.expand(z)


class _Transformer(nn.Module):
    def __init__(self, num_tokens: int, dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        # here, since timm takes seconds to import
        from timm.models.vision_transformer import Block as Layer

        norm = cast("type[nn.Module]", partial(nn.LayerNorm, eps=1e-6))  # which timm takes too
        self.positions = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.layers = nn.ModuleList(Layer(dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for layer in self.layers:
            x = layer(x)
        return x


class _NarrowingHead(nn.Module):
    def __init__(self, num_tokens: int, dim: int, embed_dim: int) -> None:
        super().__init__()
        widths = (dim, 256, 128, 32)
        first, second, third = (nn.Linear(*pair, bias=False) for pair in pairwise(widths))
        self.narrow = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.out = nn.Linear(num_tokens * widths[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(rearrange(self.narrow(x), "b q d -> b (q d)"))


class _ReadingHead(nn.Module):
    def __init__(self, reader: QFormer, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.qformer = reader
        self.out = nn.Linear(dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.qformer(x)[:, 0])
