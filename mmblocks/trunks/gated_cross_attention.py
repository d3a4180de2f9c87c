"""A decoder that reads images through gated cross-attention between its layers, and stays the text model it was.

Shapes: B rows, L new tokens, T all tokens of a row, M images of a row, Q tokens of an image, D and C the widths of text and images.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.attention.attend import Hook, changed
from mmblocks.layers.attention.gated_cross_attention import GatedCrossAttention, ReadableImages
from mmblocks.sequence.masks import Mask, MaskRule, changes
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.support.checks import is_readable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks


def images_before(table: TokenTable) -> Int[Tensor, "B T"]:
    """The number in its row of the last image that begins at or before each token in its own document; 0 for none.

    An image is a span of visual tokens, such as a single ``<image>`` token.
    """
    visual = table.modality == Modality.VISION.value
    document_begins = changes(table.document)
    begins = visual & (document_begins | changes(table.span) | changes(visual.long()))
    count = begins.long().cumsum(dim=1)
    earlier = torch.where(document_begins, count - begins.long(), 0).cummax(dim=1).values
    return torch.where((count > earlier) & ~table.is_padding, count, 0)


class ImageCache:
    """A cache of text beside the images that its rows may read. It belongs to one generation.

    Args:
        text: an empty ``KVCache`` of any kind.
        images: by the number of the layer that reads them; empty for none so far.
    """

    def __init__(self, text: KVCache, images: dict[str, ReadableImages]) -> None:
        self.text = text
        self.images = images

    @property
    def batch(self) -> int:
        """Rows."""
        return self.text.batch

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.text.length

    @property
    def free(self) -> int | None:
        """Tokens that can still be read."""
        return self.text.free

    @property
    def table(self) -> TokenTable:
        """Table of the tokens read."""
        return self.text.table

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values, those of images included, in bytes."""
        held = (tensor for images in self.images.values() for tensor in (images.key, images.value))
        return self.text.num_bytes + sum(tensor.numel() * tensor.element_size() for tensor in held)

    def see(self, table: TokenTable, rule: MaskRule | None = None, lowered: Mask | None = None) -> Mask | MaskRule | None:
        """What to hand to the trunk as ``mask`` with these tokens; see ``KVCache.see``."""
        return self.text.see(table, rule, lowered)

    def rows(self, index: Int[Tensor, " R"]) -> "ImageCache":
        """A cache of the chosen rows, as copies."""
        return ImageCache(self.text.rows(index), {name: images.rows(index) for name, images in self.images.items()})


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
        self.context_dim = context_dim
        sizes: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim, "mlp_dim": mlp_dim}
        self.gated = nn.ModuleDict(
            {
                str(number): GatedCrossAttention(dim=trunk.dim, context_dim=context_dim, **sizes)
                for number in range(every - 1, len(trunk.layers), every)
            }
        )

    @property
    def dim(self) -> int:
        """D."""
        return self.trunk.dim

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: ImageCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        images: Float[Tensor, "B M Q C"] | None = None,
        taps: dict[int, Tensor] | None = None,
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm.

        Args:
            embeds: the tokens.
            table: the tokens' metadata. Each span of visual tokens stands for one image, in the order of ``images``.
            cache: what was read before, and images that need not be given again.
            mask: as for ``Decoder``, like the last two.
            images: such as a ``PerceiverResampler`` makes of each; those of short rows are padded. With a cache, further ones.
            taps: states to record.
            hooks: functions that read or change what is on the way; a layer reads its images first.

        Raises:
            ValueError: axes that do not fit each other, or rows with more images than there are (checked on CPU).
        """
        readable = {} if cache is None else cache.images
        if images is not None:
            readable = self._with(readable, images, len(embeds))
            if cache is not None:
                cache.images = readable
        text = None if cache is None else cache.text
        before = _Once(lambda: _checked(images_before(table if text is None else text.table), readable)[:, -embeds.shape[1] :])
        if not readable:
            _checked(images_before(table), readable)
        user = hooks or TrunkHooks()
        hidden = dict(user.hidden)
        for number, projected in readable.items():
            hidden[int(number)] = self._reading(number, projected, before, hidden.get(int(number)))
        hooks = replace(user, hidden=hidden) if readable else hooks
        return self.trunk(embeds, table, text, mask=mask, taps=taps, hooks=hooks)

    def new_cache(self, batch: int, capacity: int, images: Float[Tensor, "B M Q C"] | None = None) -> ImageCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens, which may read these images."""
        readable = {} if images is None else self._with({}, images, batch)
        return ImageCache(self.trunk.new_cache(batch, capacity), readable)

    def _with(self, known: dict[str, ReadableImages], images: Tensor, rows: int) -> dict[str, ReadableImages]:
        """The images known so far and these, as each gated layer reads them."""
        if images.ndim != 4 or len(images) != rows or images.shape[3] != self.context_dim or 0 in images.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}; accepted: ({rows}, M, Q, {self.context_dim})")
        layers: dict[str, Any] = dict(self.gated.items())
        new: dict[str, ReadableImages] = {number: layer.project(images) for number, layer in layers.items()}
        return {number: known[number].followed_by(new[number]) for number in new} if known else new

    def _reading(self, number: str, images: ReadableImages, before: Callable[[], Tensor], then: Hook | None) -> Hook:
        layer: Any = self.gated[number]
        return lambda x: changed(then, layer.read(x, images, before()))


class _Once:
    """A value that is computed when it is first asked for: a cache has its table of all tokens only inside the trunk's call."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute
        self.value: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.value is None:
            self.value = self.compute()
        return self.value


def _checked(count: Tensor, readable: dict[str, ReadableImages]) -> Tensor:
    """The counts, if there are so many images."""
    there = next((images.num_images for images in readable.values()), 0)
    if is_readable(count) and count.numel() and int(count.max()) > there:
        raise ValueError(f"a row of the table has {int(count.max())} images; accepted: at most {there}, as many as images has")
    return count
