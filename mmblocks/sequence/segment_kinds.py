"""The parts of a sample as values: text, images, codes, vectors, labels; each turns into a ``Piece``.

``segments.py`` makes and checks them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from mmblocks.sequence.pieces import Piece, raster_grid
from mmblocks.sequence.tokens import ImageLayoutRule, Modality
from mmblocks.support.pictures import pixels_of
from mmblocks.vocabulary.depth_code_format import DepthCodeFormat
from mmblocks.vocabulary.grid_format import GridFormat
from mmblocks.vocabulary.text_tokenizers import TextTokenizer


@dataclass(frozen=True)
class Text:
    """Text, or token ids; see ``text``."""

    content: str | Sequence[int]
    target: str | None
    input: str
    weight: float = 1.0

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
            weight=self.weight,
        )

    def _ids(self, tokenizer: TextTokenizer | None) -> Sequence[int]:
        if not isinstance(self.content, str):
            return self.content
        if tokenizer is None:
            raise ValueError("a segment holds a string, and there is no tokenizer: give one, or give token ids")
        return tokenizer.encode(self.content)


@dataclass(frozen=True)
class Image:
    """An image that an embedder reads, or that a head writes; see ``image``."""

    content: Tensor | PILImage
    input: str
    bidirectional: bool
    target: str | None = None
    modality: int = Modality.VISION
    weight: float = 1.0
    given: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """The pixels.

        Raises:
            TypeError: a picture that no part has read yet; see ``prepared``.
        """
        if not isinstance(self.content, Tensor):
            raise TypeError("the segment holds a picture that is not preprocessed yet; accepted: pixels, as prepared() makes them")
        return self.content

    def prepared(self, preprocess: Mapping[str, Callable[[PILImage], Tensor]]) -> "Image":
        """With pixels in place of a picture, as the part that reads it makes them; as they are where it has no rule.

        Args:
            preprocess: by name, the ``preprocess`` of embedders, and of heads that images are targets of.
        """
        if isinstance(self.content, Tensor):
            return self
        rule = preprocess.get(self.input if self.target is None else self.target, pixels_of)
        return replace(self, content=rule(self.content))

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens, as many as the embedder will make of the image; one where a head writes it, which says how many."""
        size = (*self.pixels.shape[:-3], *self.pixels.shape[-2:])  # frames of a clip, height, width
        grid = torch.zeros(1, 3, dtype=torch.long) if self.target is not None else self._layout(layouts[self.input])
        everything = torch.ones(len(grid), dtype=torch.bool)
        return Piece(
            input=self.input,
            payload=self.pixels,
            modality=torch.full((len(grid),), int(self.modality)),
            grid=grid,
            in_span=everything,
            one_step=self.bidirectional,
            target=self.target,
            learned=~everything,
            values=self.pixels,
            weight=self.weight,
            size=size,
            given=dict(self.given),
        )

    def _layout(self, layout: ImageLayoutRule) -> Tensor:
        height, width = self.pixels.shape[-2:]
        frames = self.pixels.shape[:-3]
        try:
            return layout(height, width, *frames).grid
        except TypeError as error:
            if not frames:
                raise
            raise ValueError(f"input {self.input!r} reads images, and was given a clip; accepted: an embedder of clips") from error


@dataclass(frozen=True)
class Codes:
    """A grid of visual codes written as token ids; see ``codes``."""

    grid: Tensor
    format: GridFormat | DepthCodeFormat | None
    target: str | None
    structure: bool
    input: str
    modality: int = Modality.VISION
    weight: float = 1.0
    given: Mapping[str, Tensor] = field(default_factory=dict)
    bidirectional: bool = False

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens, from the id that opens the image to the one that closes it."""
        if self.format is None:
            ids, place = self.grid.flatten(), raster_grid(tuple(self.grid.shape))
        else:
            ids, place = self.format.write(self.grid)
        is_code = place[:, 0] >= 0
        return Piece(
            input=self.input,
            payload=ids,
            modality=torch.where(is_code, int(self.modality), int(Modality.TEXT)),
            grid=place.clamp(min=0),
            in_span=is_code,
            one_step=self.bidirectional,
            target=self.target,
            learned=is_code | self.structure,
            values=ids,
            weight=self.weight,
            size=tuple(self.grid.shape),
            given=dict(self.given),
            format=self.format if isinstance(self.format, GridFormat) else None,
        )


@dataclass(frozen=True)
class Vectors:
    """Continuous tokens, read by an embedder and written by a head; see ``vectors``."""

    values: Tensor
    input: str
    target: str | None
    bidirectional: bool
    modality: int = Modality.VISION
    order: Tensor | None = None
    weight: float = 1.0
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """The segment's tokens: one a vector, or as many as an embedder of images makes of a map of them."""
        if self.input in layouts and self.target is None:
            return self._map(layouts[self.input])
        size = tuple(self.values.shape[:-1])
        grid = raster_grid(size)
        everything = torch.ones(len(grid), dtype=torch.bool)
        flat = self.values.reshape(len(grid), -1)
        if self.order is not None:
            grid, flat = grid[self.order], flat[self.order]
        return Piece(
            input=self.input,
            payload=flat,
            modality=torch.full((len(grid),), int(self.modality)),
            grid=grid,
            in_span=everything,
            one_step=self.bidirectional,
            target=self.target,
            learned=everything,
            values=flat,
            weight=self.weight,
            size=size,
            given=dict(self.given),
        )

    def _map(self, layout: ImageLayoutRule) -> Piece:
        if self.values.ndim != 3 or self.order is not None:
            found = f"vectors of shape {tuple(self.values.shape)}, {'no' if self.order is None else 'an'} order"
            raise ValueError(f"input {self.input!r} reads images, and was given {found}; accepted: (H, W, D) without an order")
        pixels = self.values.movedim(-1, 0)
        return Image(pixels, self.input, self.bidirectional, modality=self.modality).piece(None, {self.input: layout})


@dataclass(frozen=True)
class Label:
    """What a head learns from the states of what stands before it; see ``label``."""

    value: Tensor
    target: str
    of: str
    weight: float = 1.0
    input: ClassVar[str] = ""

    def piece(self) -> Piece:
        """A label without tokens."""
        none = torch.zeros(0, dtype=torch.long)
        return Piece(
            input=self.input,
            payload=None,
            modality=none,
            grid=none.view(0, 3),
            in_span=none.bool(),
            one_step=False,
            target=self.target,
            learned=none.bool(),
            values=self.value[None],
            weight=self.weight,
            pooled=self.of == "mean",
        )


Segment = Text | Image | Codes | Vectors | Label
"""One part of a sample."""
