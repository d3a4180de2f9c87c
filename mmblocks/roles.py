"""The roles a part can play, as protocols: anything with these methods plugs in, no base class needed.

Shapes: B batch, L tokens of a row, N tokens (or rows) in all, D width, H and W pixels. Pixels are RGB in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.masks import Mask, MaskRule
from mmblocks.tokens import ImageLayout, Latents, TokenTable, VisionTokens


@runtime_checkable
class Tokenizer(Protocol):
    """Pixels to codes or latents, and back."""

    def encode(self, pixels: Float[Tensor, "B 3 *size"]) -> Latents:
        """Pixels in [0, 1] to latents, channels last; ``ids`` (B, *grid) for discrete tokenizers."""
        ...

    def decode(self, latents: Latents | Tensor) -> Float[Tensor, "B 3 *size"]:
        """Latents, or ids alone, to pixels in [0, 1] (not clamped while training)."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Images of any size to the tokens a trunk reads, packed.

    An embedder of ids or of vectors needs no ``layout`` and may return a plain (N, D) tensor.
    """

    def __call__(self, images: Sequence[Float[Tensor, "3 _ _"]]) -> VisionTokens:
        """Images to packed tokens, image after image."""
        ...

    def layout(self, height: int, width: int) -> ImageLayout:
        """Which tokens an image of this size (in pixels) becomes, without computing them."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Pixels to features on a grid."""

    def __call__(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """Pixels in [0, 1] to features, channels last."""
        ...


@runtime_checkable
class Connector(Protocol):
    """Features to features of another width and count."""

    def __call__(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid2 D2"]:
        """Features in, features out, both channels last."""
        ...


@runtime_checkable
class Trunk(Protocol):
    """Embeddings to hidden states: the part that lets tokens see each other."""

    def __call__(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: Any = None,
        *,
        mask: Mask | MaskRule | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states of the tokens in ``table``; with a cache, of tokens behind those it holds."""
        ...

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens."""
        ...


@runtime_checkable
class Head(Protocol):
    """Hidden states to a prediction: a loss against what is true, or a sample."""

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Tensor, weight: Float[Tensor, " N"] | None = None, **draws: Any
    ) -> Float[Tensor, " N"]:
        """One loss per row, in float32; ``weight`` scales rows. Random draws may be handed in."""
        ...

    def sample(self, hidden: Float[Tensor, "N D"], *, generator: Generator | None = None, **draws: Any) -> Tensor:
        """One prediction per row."""
        ...


@runtime_checkable
class PixelDecoder(Protocol):
    """Conditions (embeddings, features) to pixels."""

    def __call__(self, conditions: Float[Tensor, "B N D"], *, generator: Generator | None = None) -> Float[Tensor, "B 3 H W"]:
        """Conditions to pixels in [0, 1]."""
        ...


ImageLayoutRule = Callable[[int, int], ImageLayout]
"""(height, width) in pixels -> which tokens the image becomes."""
