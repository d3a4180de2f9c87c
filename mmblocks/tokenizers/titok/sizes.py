"""Sizes of TiTok's transformers, and of the tokenizers that are made of two."""

from dataclasses import dataclass
from typing import Any, TypedDict

SMALL, BASE, LARGE = (512, 8, 8), (768, 12, 12), (1024, 24, 16)
"""Width, layers and heads of the published transformers."""


class HalfArguments(TypedDict, total=False):
    """The arguments of ``HalfSizes``, for the signatures of classes that pass them on."""

    image_size: int
    patch_size: int
    num_tokens: int
    code_dim: int
    dim: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True, kw_only=True)
class HalfSizes:
    """Sizes of an encoder or a decoder.

    Attributes:
        image_size: sides of an image, in pixels.
        patch_size: sides of a patch, in pixels.
        num_tokens: K.
        code_dim: D, the width of a token outside the transformer.
        dim, num_layers, num_heads: of the transformer.

    Raises:
        ValueError: an ``image_size`` that is no multiple of ``patch_size``.
    """

    image_size: int = 256
    patch_size: int = 16
    num_tokens: int = 32
    code_dim: int = 12
    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % self.patch_size:
            near = max(round(self.image_size / self.patch_size), 1) * self.patch_size
            accepted = f"multiples of the patch size {self.patch_size}, such as {near}"
            raise ValueError(f"image_size is {self.image_size}; accepted: {accepted}")

    @property
    def side(self) -> int:
        """Rows, or columns, of patches."""
        return self.image_size // self.patch_size


class TiTokArguments(TypedDict, total=False):
    """The arguments of ``TiTokSizes``, for the signatures of classes that pass them on."""

    num_tokens: int
    image_size: int
    patch_size: int
    decoder_patch_size: int
    encoder_size: tuple[int, int, int]
    decoder_size: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TiTokSizes:
    """Sizes that TiTok and its successors share.

    Attributes:
        num_tokens: K.
        image_size: sides of an image, in pixels.
        patch_size, decoder_patch_size: sides of a patch; images come out in their own size where the decoder's is what a code of
            its VQGAN spans, if it has one.
        encoder_size, decoder_size: width, layers and heads of the transformers: ``SMALL``, ``BASE`` or ``LARGE``.
    """

    num_tokens: int = 32
    image_size: int = 256
    patch_size: int = 16
    decoder_patch_size: int = 16
    encoder_size: tuple[int, int, int] = LARGE
    decoder_size: tuple[int, int, int] = LARGE

    def encoder(self) -> dict[str, Any]:
        """The encoder's arguments of ``HalfSizes``, but for ``code_dim``."""
        return self._half(self.patch_size, self.encoder_size)

    def decoder(self) -> dict[str, Any]:
        """The decoder's, likewise."""
        return self._half(self.decoder_patch_size, self.decoder_size)

    def _half(self, patch_size: int, size: tuple[int, int, int]) -> dict[str, Any]:
        transformer = dict(zip(("dim", "num_layers", "num_heads"), size, strict=True))
        return {"image_size": self.image_size, "patch_size": patch_size, "num_tokens": self.num_tokens, **transformer}
