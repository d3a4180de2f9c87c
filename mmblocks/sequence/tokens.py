"""What passes between the parts: the token table, a tokenizer's latents, an embedder's tokens.

The table has one row per token and says what that token is; positions, masks, routing, guidance and losses are pure
functions of it (see ``masks.py`` and ``positions.py``).

Shapes: B batch, L tokens of one row, N tokens of all images together, D width.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PADDING = -1
"""Document and modality of a padding token."""

NO_SPAN = -1
"""Span of a token that belongs to no image or block."""

NO_HEAD = -1
"""Target of a token after which no head is supervised."""


class Modality(IntEnum):
    """What a token stands for; padding has the value ``PADDING``. Numbers from 16 on are free for modalities of one's own.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import Modality
        >>> table = TokenTable.text(1, 3)
        >>> [Modality(number).name for number in table.modality[0].tolist()]
        ['TEXT', 'TEXT', 'TEXT']
    """

    TEXT = 0
    VISION = 1
    AUDIO = 2
    VIDEO = 3
    DEPTH = 4


class TokenTable(NamedTuple):
    """One row per token.

    Attributes:
        modality: text, vision, ...; ``PADDING`` for padding.
        document: which packed sample a token belongs to; ``PADDING`` for padding.
        span: which image or block inside its document; ``NO_SPAN`` for text.
        grid: (t, h, w) inside the span, in tokens; zeros for text.
        order: generation step inside the document: equal orders see each other, smaller ones are the past.
        noisy: True for a noised copy, seen only from inside its own span.
        target: index of the head that predicts what comes next here, or ``NO_HEAD``.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence.positions import sequential
        >>> table = TokenTable.text(1, 5)
        >>> table.document[:, 3:] = 1  # two samples packed into one row
        >>> sequential(table).tolist()
        [[0, 1, 2, 0, 1]]
    """

    modality: Int[Tensor, "B L"]
    document: Int[Tensor, "B L"]
    span: Int[Tensor, "B L"]
    grid: Int[Tensor, "B L 3"]
    order: Int[Tensor, "B L"]
    noisy: Bool[Tensor, "B L"]
    target: Int[Tensor, "B L"]

    @classmethod
    def padding(cls, batch: int, length: int, device: torch.device | str = "cpu") -> "TokenTable":
        """A table of padding alone, to be written into."""

        def full(value: int) -> Tensor:
            return torch.full((batch, length), value, dtype=torch.long, device=device)

        return cls(
            modality=full(PADDING),
            document=full(PADDING),
            span=full(NO_SPAN),
            grid=full(0)[..., None].repeat(1, 1, 3),
            order=full(0),
            noisy=full(0).bool(),
            target=full(NO_HEAD),
        )

    @classmethod
    def text(cls, batch: int, length: int, device: torch.device | str = "cpu") -> "TokenTable":
        """Plain text: one document a row, every token its own step. What a language model alone needs."""
        table = cls.padding(batch, length, device)
        zeros = torch.zeros_like(table.document)
        steps = torch.arange(length, device=device).repeat(batch, 1)
        return table._replace(modality=zeros + Modality.TEXT, document=zeros, order=steps)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        batch, length = self.document.shape
        return batch, length

    @property
    def is_padding(self) -> Bool[Tensor, "B L"]:
        """True at padding."""
        return self.document == PADDING

    def slice(self, start: int, stop: int) -> "TokenTable":
        """The columns ``start:stop`` of every row."""
        return type(self)(*(column[:, start:stop] for column in self))

    def write(self, start: int, other: "TokenTable") -> None:
        """Overwrites the columns from ``start`` on with ``other``, in place."""
        for column, new in zip(self, other, strict=True):
            column[:, start : start + new.shape[1]] = new

    def rows(self, index: Int[Tensor, " R"]) -> "TokenTable":
        """The chosen rows, in the order of ``index``."""
        return type(self)(*(column[index] for column in self))

    def to(self, device: torch.device | str) -> "TokenTable":
        """The table on another device."""
        return type(self)(*(column.to(device) for column in self))


def packed(column: TokenTable) -> Int[Tensor, "B 9"]:
    """A column as one tensor of its own."""
    modality, document, span, grid, order, noisy, target = column
    return torch.cat([modality, document, span, order, noisy, target, grid.flatten(1)], dim=1)


def unpacked(columns: Int[Tensor, "B n 9"]) -> TokenTable:
    """The way back, of several."""
    modality, document, span, order, noisy, target = columns[..., :6].unbind(-1)
    return TokenTable(modality, document, span, columns[..., 6:], order, noisy.bool(), target)


class Latents(NamedTuple):
    """What a visual tokenizer makes of pixels. Which fields are set depends on the method.

    Attributes:
        z: the vectors a decoder reads, channels last.
        ids: code indices, one or several (Q) a place; None for continuous tokenizers.
        loss: the tokenizer's own terms by name (commitment, codebook, entropy), unweighted; None outside training.
        mean, logvar: of a variational tokenizer.
        features: what was quantised, for models that read it instead of the codes.
        lengths: tokens of each image, where they differ; the rest of a row is padding.
        positions: indices of the places that have a token, row by row, where not all have one.

    Examples:
        >>> import torch
        >>> from mmblocks import Latents
        >>> latents = Latents(z=torch.randn(1, 4, 4, 8), ids=torch.zeros(1, 4, 4, dtype=torch.long))
        >>> tuple(latents.z.shape), latents.loss is None  # there are losses while training
        ((1, 4, 4, 8), True)
    """

    z: Float[Tensor, "B *grid D"]
    ids: Int[Tensor, "B *grid_or_q"] | None = None
    loss: dict[str, Float[Tensor, ""]] | None = None
    mean: Float[Tensor, "B *grid D"] | None = None
    logvar: Float[Tensor, "B *grid D"] | None = None
    features: Float[Tensor, "B *grid D2"] | None = None
    lengths: Int[Tensor, " B"] | None = None
    positions: Int[Tensor, "B L"] | None = None


class TokenKind(IntEnum):
    """What an embedder's token is."""

    PATCH = 0
    CLASS = 1
    NEWLINE = 2
    SIZE = 3
    MARKER = 4


class ImageLayout(NamedTuple):
    """Which tokens an embedder makes of one image, known from the image's size alone.

    Attributes:
        grid: (t, h, w) of each token; class, size and marker tokens have (0, 0, 0), a newline token the column after its row's
            last.
        kind: a ``TokenKind`` each.

    Examples:
        >>> from mmblocks.embedders import NEOPatchEmbedding
        >>> layout = NEOPatchEmbedding(dim=8, hidden_dim=16).layout(64, 32)
        >>> layout.grid.tolist()  # (t, h, w) of each token
        [[0, 0, 0], [0, 1, 0]]
    """

    grid: Int[Tensor, "N 3"]
    kind: Int[Tensor, " N"]


class VisionTokens(NamedTuple):
    """The tokens of several images of any size, packed one image after the other.

    Attributes:
        embeds: the vectors a trunk reads.
        image: which image of the input list each token belongs to.
        grid: (t, h, w) inside that image, in tokens.
        kind: a ``TokenKind`` each.

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import NEOPatchEmbedding
        >>> embedder = NEOPatchEmbedding(dim=8, hidden_dim=16)
        >>> tokens = embedder([torch.rand(3, 32, 64), torch.rand(3, 32, 32)])
        >>> tokens.image.tolist(), tokens.grid.tolist()
        ([0, 0, 1], [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    """

    embeds: Float[Tensor, "N D"]
    image: Int[Tensor, " N"]
    grid: Int[Tensor, "N 3"]
    kind: Int[Tensor, " N"]


def vectors_of(made: VisionTokens | Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """What an embedder has made, as vectors alone."""
    return made.embeds if isinstance(made, VisionTokens) else made


ImageLayoutRule = Callable[..., ImageLayout]
"""(height, width) in pixels, and of clips the frames -> which tokens the image becomes."""
