"""A decoder that reads images through gated cross-attention between its layers, and stays the text model it was.

Shapes: B rows, L new tokens, M images of a row, Q tokens of an image, D and C the widths of text and images.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.parts.cross_attention import GatedCrossAttentionLayer, projected, read_images


class GatedCrossAttentionDecoder(Block):
    """A decoder with gated cross-attention to images before every n-th of its layers.

    A token reads the last image that begins before it in its document (an image's own tokens read that image). The gates begin at
    zero: a new trunk computes what the decoder does, bit for bit. Images come beside the row, whose table says where they stand:

        hidden = trunk(embeds, table, images=resampler(features))
        model.generate(..., cache=model.trunk.new_cache(rows, capacity, images=...))

    Args:
        trunk: a ``Decoder`` of any kind.
        context_dim: C.
        every: a gated layer stands before each layer whose number, counted from one, this divides.
        num_heads, head_dim, mlp_dim: of the gated layers.

    Raises:
        TypeError: a trunk that is no ``Decoder``.
        ValueError: no layer that ``every`` divides.

    Source: Flamingo (arXiv 2204.14198), placed as in mlfoundations/open_flamingo.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.sequence import Modality
        >>> from mmblocks.trunks import GatedCrossAttentionDecoder
        >>> plain = Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48)
        >>> trunk = GatedCrossAttentionDecoder(trunk=plain, context_dim=24, every=2)
        >>> table, embeds = TokenTable.text(1, 5), torch.randn(1, 5, 32)
        >>> table.modality[:, 0] = Modality.VISION  # the token that stands for the image
        >>> torch.equal(trunk(embeds, table, images=torch.randn(1, 1, 7, 24)), plain(embeds, table))  # gates begin closed
        True
    """

    def __init__(
        self,
        *,
        trunk: Block,
        context_dim: int,
        every: int = 4,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(trunk, Decoder):
            raise TypeError(f"trunk is a {type(trunk).__name__}; accepted: a Decoder")
        if not 1 <= every <= len(trunk.layers):
            raise ValueError(f"every is {every}; accepted: 1 to {len(trunk.layers)}, the trunk's layers")
        self.trunk: Decoder = trunk
        gated = GatedCrossAttentionLayer(context_dim=context_dim, num_heads=num_heads, head_dim=head_dim, mlp_dim=mlp_dim)
        self.gated = nn.ModuleDict({str(layer): gated.block(trunk.dim) for layer in range(every - 1, trunk.num_layers, every)})

    @property
    def dim(self) -> int:
        """D."""
        return self.trunk.dim

    @property
    def num_layers(self) -> int:
        """Layers, without those that read images."""
        return self.trunk.num_layers

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        images: Float[Tensor, "B M Q C"] | None = None,
        hooks: TrunkHooks | None = None,
        conditions: Conditions | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm.

        Args:
            embeds: the tokens.
            table: the tokens' metadata. Each span of visual tokens stands for one image, in the order of ``images``.
            cache: what was read before, and images that need not be given again.
            mask: as for ``Decoder``.
            images: such as a ``PerceiverResampler`` makes of each; those of short rows are padded. With a cache, further ones.
            hooks: functions that read or change what is on the way; a layer reads its images first.
            conditions: as for ``Decoder``; the gated layers are told none.

        Raises:
            ValueError: axes that do not fit each other, or rows with more images than there are (checked on CPU).
        """
        trunk = self.trunk
        context = trunk.context(embeds, table, cache, mask=mask, hooks=hooks, images=images, conditions=conditions)
        gated: dict[str, Any] = dict(self.gated.items())
        x = context.as_rows(trunk.scaled(embeds))
        for index, layer in enumerate(trunk.layers):
            if str(index) in gated:
                x = context.as_rows(read_images(gated[str(index)], context.in_order(x), context, index))
            x = trunk.run(x, context, [(index, layer)])
        return trunk.norm(context.hooks.state(trunk.num_layers, context.in_order(x)))

    def new_cache(self, batch: int, capacity: int, images: Float[Tensor, "B M Q C"] | None = None) -> KVCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens, which may read these images."""
        cache = self.trunk.new_cache(batch, capacity)
        if images is not None:
            gated: dict[str, Any] = dict(self.gated.items())
            cache.images = {int(layer): projected(module, images, batch) for layer, module in gated.items()}
        return cache
