"""The roles a part can play, as protocols: anything with these methods plugs in, no base class needed.

``isinstance`` looks at names alone, as with every protocol; ``lacks`` also compares what the methods take.

Shapes: B batch, L tokens of a row, N tokens (or rows) in all, D width, H and W pixels. Pixels are RGB in [0, 1].
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Generator, Tensor, nn

from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.tokens import ImageLayout, Latents, TokenTable, VisionTokens


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
        """Hidden states of the tokens in ``table``; with a cache, of tokens after those it holds."""
        ...

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens."""
        ...


@runtime_checkable
class Head(Protocol):
    """Hidden states to a prediction: a loss against what is true, or a sample."""

    def loss(self, hidden: Float[Tensor, "N D"], target: Tensor, weight: Float[Tensor, " N"] | None = None) -> Float[Tensor, " N"]:
        """One loss per row, in float32; ``weight`` scales rows."""
        ...

    def sample(self, hidden: Float[Tensor, "N D"], *, generator: Generator | None = None) -> Tensor:
        """One prediction per row."""
        ...


@runtime_checkable
class PixelDecoder(Protocol):
    """Conditions (embeddings, features) to pixels."""

    def __call__(self, conditions: Float[Tensor, "B N D"], *, generator: Generator | None = None) -> Float[Tensor, "B 3 H W"]:
        """Conditions to pixels in [0, 1]."""
        ...


AnyEmbedder = Callable[[Any], VisionTokens | Tensor]
"""What an input of a model is: an ``Embedder`` of images, or a part that turns ids (N,) or vectors (N, D') into (N, D)."""


def lacks(part: object, role: type, *methods: str) -> list[str]:
    """What a part would need to play a role, in words; empty if it can.

    Args:
        part: any object.
        role: one of this module's protocols.
        methods: those of the role that matter; all if none are named. "forward" stands for the call.
    """
    missing = []
    for name, wanted in vars(role).items():
        public = "forward" if name == "__call__" else name
        if not inspect.isfunction(wanted) or public.startswith("_") or (methods and public not in methods):
            continue
        found = _called(part) if name == "__call__" else getattr(part, name, None)
        shape = list(inspect.signature(wanted).parameters.values())[1:]
        described = public + str(inspect.Signature([one.replace(annotation=one.empty) for one in shape]))
        if not callable(found):
            missing.append(f"it has no {described}")
        elif not _takes(found, shape):
            missing.append(f"its {public} takes {_short(found)}, not {described.removeprefix(public)}")
    return missing


def _called(part: object) -> object:
    """What runs when a part is called; a module's call itself takes anything."""
    return getattr(part, "forward", None) if isinstance(part, nn.Module) else part


def _takes(method: Callable[..., Any], shape: Sequence[inspect.Parameter]) -> bool:
    """Whether a method can be called as a role's is."""
    positional = [one.name for one in shape if one.kind is one.POSITIONAL_OR_KEYWORD]
    named = {one.name: None for one in shape if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(method).bind(*positional, **named)
    except TypeError:
        return False
    return True


def _short(method: Callable[..., Any]) -> str:
    """A method's parameters without their annotations."""
    return str(inspect.Signature([one.replace(annotation=one.empty) for one in inspect.signature(method).parameters.values()]))
