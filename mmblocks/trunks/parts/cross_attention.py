"""Layers through which tokens read images that do not stand in their row.

Shapes: B rows, L new tokens, T all tokens of a row, N tokens (on one or more axes), D width, M images of a row, Q tokens of an
image, C their width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.layers.attention.gated_cross_attention import GatedCrossAttention, ReadableImages
from mmblocks.sequence.documents import document_begins, last_real
from mmblocks.sequence.masks import changes
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.support.checks import is_readable
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.part import Part, Site, TrunkPart


class GatedCrossAttentionLayer(Part):
    """A layer of its own between those of a trunk: gated cross-attention to the images of a call, and a feed-forward part.

    A token reads the last image that begins before it in its document (an image's own tokens read that image). The gates begin at
    zero, so that a new layer changes nothing.

    Args:
        context_dim: C.
        num_heads, head_dim: of the attention; heads need not fill the width.
        mlp_dim: width of the feed-forward part; None for four times ``dim``.

    Source: Flamingo (arXiv 2204.14198).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import GatedCrossAttentionLayer, llama_layer
        >>> kinds = {"text": llama_layer(num_heads=4, mlp_dim=48), "images": GatedCrossAttentionLayer(context_dim=24)}
        >>> trunk = Decoder(dim=32, num_layers=3, layers=kinds, layer_types=("text", "images", "text"))
        >>> tuple(trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5), images=torch.randn(1, 2, 7, 24)).shape)
        (1, 5, 32)
    """

    context_dim: int
    num_heads: int = 8
    head_dim: int = 64
    mlp_dim: int | None = None

    def block(self, dim: int) -> GatedCrossAttention:
        """The Block that a layer in a trunk of this width holds."""
        return GatedCrossAttention(
            dim=dim, context_dim=self.context_dim, num_heads=self.num_heads, head_dim=self.head_dim, mlp_dim=self.mlp_dim
        )

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return ImageReader(self.block(site.dim))


class ImageReader(TrunkPart):
    """What ``GatedCrossAttentionLayer`` describes."""

    reads_rows = False
    static_step = False

    def __init__(self, gated: GatedCrossAttention) -> None:
        super().__init__()
        self.gated = gated

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """The tokens, with what they read added."""
        return context.as_rows(read_images(self.gated, context.in_order(x), context, layer))


def read_images(
    gated: GatedCrossAttention, x: Float[Tensor, "B L D"], context: ForwardContext, layer: int
) -> Float[Tensor, "B L D"]:
    """Tokens that have read the images of their rows: those in the cache, and those of this call, which are added to it.

    Raises:
        ValueError: axes of images that do not fit, or rows with more images than there are (checked on CPU).
    """
    readable = None if context.cache is None else context.cache.images.get(layer)
    if context.images is not None:
        new = projected(gated, context.images, len(x))
        readable = new if readable is None else readable.followed_by(new)
        if context.cache is not None:
            context.cache.images[layer] = readable
    before = context.share("images before", lambda: images_before(context.keys))[:, -x.shape[1] :]
    _check_count(before, 0 if readable is None else readable.num_images)
    return x if readable is None else gated.read(x, readable, before)


def projected(gated: GatedCrossAttention, images: Float[Tensor, "B M Q C"], rows: int) -> ReadableImages:
    """Images as a layer keeps them.

    Raises:
        ValueError: other axes than (rows, M, Q, C).
    """
    context_dim = gated.key.in_features
    if images.ndim != 4 or len(images) != rows or images.shape[3] != context_dim or 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}; accepted: ({rows}, M, Q, {context_dim})")
    return gated.project(images)


def images_before(table: TokenTable) -> Int[Tensor, "B T"]:
    """The index in its row, from 1, of the last image that begins at or before each token in its own document; 0 for none.

    An image is a span of visual tokens, such as a single ``<image>`` token.
    """
    last = last_real(table).clamp(min=0)  # padding counts as what stands before it
    visual = (table.modality == Modality.VISION.value).gather(1, last)
    document = document_begins(table)
    begins = visual & (document | changes(table.span.gather(1, last)) | changes(visual.long()))
    count = begins.long().cumsum(dim=1)
    earlier = torch.where(document, count - begins.long(), 0).cummax(dim=1).values
    return torch.where((count > earlier) & ~table.is_padding, count, 0)


def _check_count(count: Tensor, there: int) -> None:
    if is_readable(count) and count.numel() and int(count.max()) > there:
        raise ValueError(f"a row of the table has {int(count.max())} images; accepted: at most {there}, as many as images has")
