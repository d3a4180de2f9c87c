"""The roles a part can play, as protocols: anything with these methods plugs in, no base class needed.

``isinstance`` looks at names alone, as with every protocol; ``lacks`` also compares what the methods take.

Shapes: B batch, L tokens of a row, N tokens (or rows) in all, D width, D2 that of states, H and W pixels. Pixels are RGB in [0, 1].
"""

import inspect
from collections.abc import Callable, Sequence
from collections.abc import Generator as Coroutine
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Generator, Tensor, nn

from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.sequence.tokens import ImageLayout, Latents, TokenTable, VisionTokens, vectors_of


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
class PlacedEmbedder(Protocol):
    """An embedder of ids or vectors that is told where in its image each stands, such as ``LearnedPlaces``."""

    def at(self, values: Tensor, grid: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """Values and their (t, h, w) to vectors."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Pixels to features on a grid."""

    def __call__(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """Pixels in [0, 1] to features, channels last."""
        ...


@runtime_checkable
class AnySize(Protocol):
    """An encoder of images of several sizes."""

    def grid_of(self, height: int, width: int) -> tuple[int, ...]:
        """The grid of the features of an image of this size; raises ``ValueError`` for one that is not taken."""
        ...


@runtime_checkable
class Sized(Protocol):
    """An encoder that says which size it takes."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width; None where others are taken too, which ``grid_of`` says then."""
        ...


@runtime_checkable
class OneSize(Sized, Protocol):
    """An encoder of images of one size."""

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of the features."""
        ...


@runtime_checkable
class Wide(Protocol):
    """A part that names the width of its features."""

    @property
    def dim(self) -> int:
        """D."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that also gives the tokens before the patches, such as a class token."""

    def tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """All tokens as one row, those before the patches first."""
        ...


@runtime_checkable
class Preprocessing(Protocol):
    """A part that makes its pixels of an image file."""

    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the part wants it."""
        ...


@runtime_checkable
class GridConnector(Protocol):
    """A connector that changes the grid of the features; one without this method keeps it."""

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a grid; raises ``ValueError`` for one that is not taken."""
        ...


@runtime_checkable
class Connector(Protocol):
    """Features to features of another width and count."""

    def __call__(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid2 D2"]:
        """Features in, features out, both channels last."""
        ...


@runtime_checkable
class Trunk(Protocol):
    """Embeddings to hidden states: the part that lets tokens see each other.

    One whose class says ``reads_total_length = True`` is also handed ``total_length`` while a model generates: how many tokens the
    rows will have in the end, padding included, one number for each of the B rows.
    """

    def __call__(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: Any = None,  # of the kind that its own new_cache makes
        *,
        mask: Mask | MaskRule | None = None,
    ) -> Float[Tensor, "B L D2"]:
        """Hidden states of the tokens in ``table``; with a cache, of tokens after those it holds."""
        ...

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens."""
        ...


def reads_total_length(trunk: object) -> bool:
    """Whether a trunk says that it is to be told how long rows will become."""
    return bool(getattr(trunk, "reads_total_length", False))  # a trunk of one's own need not say anything


@runtime_checkable
class Cache(Protocol):
    """What a trunk keeps of the tokens that it has read. How it does is its trunk's own affair."""

    @property
    def batch(self) -> int:
        """Rows."""
        ...

    @property
    def length(self) -> int:
        """Tokens read so far."""
        ...

    @property
    def free(self) -> int | None:
        """Tokens that can still be read; None where there is no end."""
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
class SpanHead(Protocol):
    """A head that writes whole spans of tokens: between what a sample holds and what the trunk reads, and back.

    See ``sequence.spans``. A head may have a method ``finished(spans) -> Reading`` too: what the trunk reads of spans that are
    written, where that is more than their values. ``write`` is a coroutine: it yields what the trunk reads in a pass, is sent the
    states, and returns what it has written.
    """

    @property
    def span(self) -> SpanLayout:
        """How its spans stand in a row."""
        ...

    def corrupt(self, spans: Spans, *, generator: Generator | None = None) -> Reading:
        """What the trunk reads at spans that are learned. What is random here can be handed in as further keywords."""
        ...

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """One loss per token, or per span, in float32; ``hidden`` are the states at ``spans.states``."""
        ...

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor | list[Tensor]]:
        """Values of the spans, in as many passes as it takes; ``guide`` makes one prediction of those of all streams."""
        ...


AnyHead = Head | SpanHead
"""What an output of a model is."""


@runtime_checkable
class PixelDecoder(Protocol):
    """Conditions (embeddings, features) to pixels."""

    def __call__(self, conditions: Float[Tensor, "B N D"], *, generator: Generator | None = None) -> Float[Tensor, "B 3 H W"]:
        """Conditions to pixels in [0, 1]."""
        ...


AnyEmbedder = Callable[[Any], VisionTokens | Tensor]
"""What an input of a model is: an ``Embedder`` of images, or a part that turns ids (N,) or vectors (N, D') into (N, D)."""


def embed_at(embedder: AnyEmbedder, values: Tensor | list[Tensor], grid: Int[Tensor, "_ 3"]) -> Float[Tensor, "_ D"]:
    """What an embedder makes of values that stand at these places, whether it is told them or not."""
    if isinstance(embedder, PlacedEmbedder) and isinstance(values, Tensor):
        return embedder.at(values, grid)
    return vectors_of(embedder(values))


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


def check_role(part: object, role: type, what: str, *methods: str) -> None:
    """Refuses a part that cannot play a role.

    Args:
        part: any object.
        role: a protocol.
        what: what the part is called, for the message.
        methods: those of the role that matter; see ``lacks``.

    Raises:
        TypeError: the message says what the part lacks.
    """
    missing = lacks(part, role, *methods)
    if missing:
        found = f"{what} is a {type(part).__name__}, which cannot be used here"
        raise TypeError(f"{found}: {'; '.join(missing)}. See {role.__module__}")


def _called(part: object) -> object:
    """What runs when a part is called; a module's call itself takes anything. None for a module that defines nothing."""
    if not isinstance(part, nn.Module):
        return part
    return None if inspect.unwrap(getattr(part.forward, "__func__", part.forward)) is nn.Module.forward else part.forward


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
