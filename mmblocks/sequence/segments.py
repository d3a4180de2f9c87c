"""What a sample is made of: text, images, grids of codes and rows of vectors, in the order in which they are read.

    [text("what is this? "), image(pixels), text("a seven", target="text")]

A segment's ``target`` names the head that learns to produce it, or None where it is only read. Each segment turns into
a ``Piece``: its tokens' columns of the token table, and what is to be embedded for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmblocks.sequence.tokens import ImageLayoutRule, Modality
from mmblocks.vocabulary.grid_format import GridFormat
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

NO_ID = -1
"""In place of an id, where an embedder writes something that has none."""


class Piece(NamedTuple):
    """A segment's n tokens, before they are laid out in a row.

    Attributes:
        input: which embedder writes them.
        payload: what it is given: ids (n,), or one image or array of vectors.
        modality, grid: columns of the token table.
        in_span: True where the token belongs to the image or block (and not to structure around it).
        one_step: whether all tokens are one generation step, and so see each other.
        target: the head that learns them, or None.
        learned: which of the tokens that head learns.
        values: what it learns: ids (n,) or vectors (n, D); None without a target.
    """

    input: str
    payload: Tensor
    modality: Int[Tensor, " n"]
    grid: Int[Tensor, "n 3"]
    in_span: Bool[Tensor, " n"]
    one_step: bool
    target: str | None
    learned: Bool[Tensor, " n"]
    values: Tensor | None

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.modality.shape[0]

    @property
    def ids(self) -> Int[Tensor, " n"]:
        """The tokens' ids, ``NO_ID`` where they have none."""
        return self.payload if self.payload.dtype == torch.long else torch.full_like(self.modality, NO_ID)


@dataclass(frozen=True)
class Text:
    """Text, or token ids; see ``text``."""

    content: str | Sequence[int]
    target: str | None
    input: str

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens."""
        ids = torch.as_tensor(self._ids(tokenizer), dtype=torch.long).reshape(-1)
        none = torch.zeros(len(ids), dtype=torch.bool)
        return Piece(
            input=self.input,
            payload=ids,
            modality=torch.full_like(ids, Modality.TEXT),
            grid=ids.new_zeros(len(ids), 3),
            in_span=none,
            one_step=False,
            target=self.target,
            learned=~none,
            values=ids,
        )

    def _ids(self, tokenizer: TextTokenizer | None) -> Sequence[int]:
        if not isinstance(self.content, str):
            return self.content
        if tokenizer is None:
            raise ValueError("a segment holds a string, and there is no tokenizer: give one, or give token ids")
        return tokenizer.encode(self.content)


@dataclass(frozen=True)
class Image:
    """An image that an embedder reads; see ``image``."""

    pixels: Tensor
    input: str
    bidirectional: bool
    target: ClassVar[None] = None

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens, as many as the embedder will make of the image."""
        grid, _ = layouts[self.input](*self.pixels.shape[-2:])
        everything = torch.ones(len(grid), dtype=torch.bool)
        return Piece(
            input=self.input,
            payload=self.pixels,
            modality=torch.full((len(grid),), int(Modality.VISION)),
            grid=grid,
            in_span=everything,
            one_step=self.bidirectional,
            target=None,
            learned=~everything,
            values=None,
        )


@dataclass(frozen=True)
class Codes:
    """A grid of visual codes written as token ids; see ``codes``."""

    grid: Tensor
    format: GridFormat
    target: str | None
    structure: bool
    input: str

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens, from the id that opens the image to the one that closes it."""
        ids, place = self.format.write(self.grid)
        is_code = place[:, 0] >= 0
        return Piece(
            input=self.input,
            payload=ids,
            modality=torch.where(is_code, int(Modality.VISION), int(Modality.TEXT)),
            grid=place.clamp(min=0),
            in_span=is_code,
            one_step=False,
            target=self.target,
            learned=is_code | self.structure,
            values=ids,
        )


@dataclass(frozen=True)
class Vectors:
    """Continuous tokens, read by an embedder and written by a head; see ``vectors``."""

    values: Tensor
    input: str
    target: str | None
    bidirectional: bool

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens, one a vector."""
        sizes = (1,) * (4 - self.values.ndim) + tuple(self.values.shape[:-1])
        axes = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        grid = torch.stack(axes, dim=-1).reshape(-1, 3)
        everything = torch.ones(len(grid), dtype=torch.bool)
        flat = self.values.reshape(len(grid), -1)
        return Piece(
            input=self.input,
            payload=flat,
            modality=torch.full((len(grid),), int(Modality.VISION)),
            grid=grid,
            in_span=everything,
            one_step=self.bidirectional,
            target=self.target,
            learned=everything,
            values=flat,
        )


Segment = Text | Image | Codes | Vectors
"""One part of a sample."""


def text(content: str | Sequence[int], *, target: str | None = None, input: str = "text") -> Text:
    """Text, or token ids (special tokens, say).

    Args:
        content: a string, which the batch builder's tokenizer encodes, or ids.
        target: the head that learns to write it; None where it is only read.
        input: the embedder that reads it.

    Examples:
        >>> from mmblocks import BatchBuilder, ByteTokenizer, text
        >>> builder = BatchBuilder(tokenizer=ByteTokenizer(), heads=("lm",))
        >>> batch = builder([[text("7? "), text("yes", target="lm")]])
        >>> bytes(batch.targets["lm"].values.tolist()).decode()
        'yes'
    """
    return Text(content, target, input)


def image(pixels: Float[Tensor, "3 H W"], *, input: str = "vision", bidirectional: bool = False) -> Image:
    """An image for an embedder to read.

    Args:
        pixels: RGB in [0, 1].
        input: the embedder that reads it.
        bidirectional: whether its tokens see each other, or only those before.

    Raises:
        TypeError: if the pixels are not floating point.
        ValueError: if they are not (3, H, W), hold no pixel, or lie outside [0, 1] (NaN included).

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, TextEmbedding, image, text
        >>> from mmblocks.embedders import NEOPatchEmbedding
        >>> embedders = {"text": TextEmbedding(vocab_size=16, dim=8), "vision": NEOPatchEmbedding(dim=8, hidden_dim=16)}
        >>> batch = BatchBuilder(inputs=embedders)([[text([1]), image(torch.rand(3, 32, 64), bidirectional=True)]])
        >>> batch.table.order.tolist()  # both patches are one step
        [[0, 1, 1]]
    """
    if not pixels.is_floating_point():
        raise TypeError(f"pixels are {pixels.dtype}; accepted: floating point in [0, 1] (divide uint8 by 255)")
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; accepted: (3, H, W) with H and W at least 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"pixels lie in [{low:g}, {high:g}]; accepted: [0, 1]")
    return Image(pixels, input, bidirectional)


def codes(
    grid: Int[Tensor, "H W"],
    format: GridFormat,
    *,
    target: str | None = None,
    structure: bool = False,
    input: str = "text",
) -> Codes:
    """A visual tokenizer's codes, written as token ids of a shared vocabulary.

    Args:
        grid: code indices.
        format: how the vocabulary writes an image.
        target: the head that learns to write the codes; None where they are only read.
        structure: whether it also learns the ids around them (size, row ends, closing), as a model must that decides
            itself when to write an image and how large.
        input: the embedder that reads the ids.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, codes
        >>> from mmblocks.vocabulary import raster_format
        >>> grid = torch.tensor([[5, 6, 7], [8, 9, 10]])
        >>> batch = BatchBuilder(heads=("lm",))([[codes(grid, raster_format(2, 3, 16), target="lm")]])
        >>> batch.ids.tolist(), batch.targets["lm"].values.tolist()  # nothing predicts a sample's first token
        ([[5, 6, 7, 8, 9, 10]], [6, 7, 8, 9, 10])
    """
    return Codes(grid, format, target, structure, input)


def vectors(values: Float[Tensor, "*grid D"], *, input: str, target: str | None = None, bidirectional: bool = False) -> Vectors:
    """Continuous tokens: latents or features that are read as they are, and that a head may learn to write.

    Args:
        values: (N, D), (H, W, D) or (T, H, W, D).
        input: the embedder that reads the (N, D) rows.
        target: the head that learns to write them.
        bidirectional: whether they see each other, or only those before.

    Raises:
        ValueError: if the shape is none of these, or a value is not finite.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, vectors
        >>> batch = BatchBuilder()([[vectors(torch.randn(2, 2, 8), input="latents")]])
        >>> tuple(batch.inputs["latents"].values.shape), batch.table.grid[0].tolist()
        ((4, 8), [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    """
    if not 2 <= values.ndim <= 4 or 0 in values.shape:
        raise ValueError(f"values have shape {tuple(values.shape)}; accepted: (N, D), (H, W, D) or (T, H, W, D)")
    if not values.isfinite().all():
        raise ValueError("values hold NaN or infinity; accepted: finite numbers")
    return Vectors(values, input, target, bidirectional)
