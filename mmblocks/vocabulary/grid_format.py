"""How a grid of visual codes is written as a row of token ids, as data: Emu3's and Emu3.5's formats and the like.

    begin  height x width (digits)  image  row row_end row row_end ... row [row_end]  closing...

A grid has rows and columns (H, W), is one row of codes (N,), or a clip of frames (T, H, W). Everything is a pure function of its
size and of an offset, which counts the tokens after the head, which ends with ``image``. Which ids the codes have is said by
``CodeIds``; codes of Q levels are Q tokens a place. For one token a place see ``depth_code_format``.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.former_names import former_attribute, takes_former_arguments
from mmblocks.vocabulary.grid_sizes import AXES, axes_in_words, grid_size, places_of, three_sides

ANY_CODE = -1
"""In place of an id: any visual code may stand here."""

FINISHED = -2
"""In place of an id: the image is complete before this offset."""


class GridText(NamedTuple):
    """A grid written out, token by token.

    Attributes:
        ids: the token ids.
        place: (t, h, w) of the code, or -1s where the token is structure (digits, row ends, ...).
    """

    ids: Int[Tensor, " N"]
    place: Int[Tensor, "N 3"]


@takes_former_arguments
@dataclass(frozen=True, kw_only=True)
class GridFormat:
    """The ids and the order in which a model's vocabulary writes an image.

    What a format does not have is None: a size of one kind only (``fixed_size``) is not written, so that there are no
    ``digits``, ``times`` and ``image``; rows may follow each other without ``row_end``; a model of images alone has no ``begin``.

    Attributes:
        begin: opens an image (Emu3: ``<|image start|>``).
        image: stands between the size and the first code (``<|image token|>``).
        row_end: closes a row (``<|extra_200|>``).
        last_row_end: whether the last row is closed too (Emu3 yes, Emu3.5 no).
        closing: what follows the last row; its last id ends the image (``<|image end|>``).
        digits: the ids of "0" ... "9", which write the size.
        times: the id between the sides of a size ("*").
        sides: in place of ``digits``, (side, id) for each side that has an id of its own (Lumina-mGPT): a size is one id a side.
        codes: the ids of the visual codes. Those of several codebooks, the Q levels of a residual tokenizer, follow each other in
            each place: a grid is (*size, Q).
        fixed_size: (N,), (height, width) or (frames, height, width) of every image, where the size is not written.
        axes: of a size that is written: 1, 2 or 3; None for as many as ``fixed_size`` has, or 2.
        frame_end: closes each frame of a clip, the last too; the frames' last rows are closed as ``last_row_end`` says.

    Raises:
        ValueError: a size that is neither written nor fixed, or of other than 1 to 3 axes; ``frame_end`` without frames; a side or
            an id twice among ``sides``.

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import EMU3, CodeIds, GridFormat
        >>> grid = torch.tensor([[5, 6, 7], [8, 9, 10]])
        >>> ids = EMU3.write(grid).ids
        >>> len(ids) == len(EMU3.head(2, 3)) + EMU3.length(2, 3)
        True
        >>> torch.equal(EMU3.read_image(ids.tolist()), grid)
        True
        >>> levels = GridFormat(begin=0, closing=(1,), codes=CodeIds(sizes=(8, 8), first=2), fixed_size=(3,))
        >>> levels.write(torch.tensor([[0, 7], [1, 6], [2, 5]])).ids.tolist()  # three places of two levels
        [0, 2, 17, 3, 16, 4, 15, 1]
    """

    begin: int | None
    closing: tuple[int, ...]
    codes: CodeIds
    image: int | None = None
    row_end: int | None = None
    last_row_end: bool = False
    digits: tuple[int, ...] = ()
    times: int | None = None
    fixed_size: tuple[int, ...] | None = None
    axes: int | None = None
    frame_end: int | None = None
    sides: tuple[tuple[int, int], ...] = ()

    first_code = former_attribute("first_code", "start")
    num_codes = former_attribute("num_codes", "num_ids")
    code_ids = former_attribute("code_ids", "table")

    def __post_init__(self) -> None:
        by_digits = self.image is not None and len(self.digits) == 10 and (self.times is not None or self.axes == 1)
        by_sides = bool(self.sides) and not self.digits and self.times is None
        if (by_digits or by_sides) == (self.fixed_size is not None):
            accepted = "a size, or image, times and ten digits to write it with, or sides alone"
            raise ValueError(f"fixed_size is {self.fixed_size}; accepted: {accepted}")
        if any(len(set(column)) < len(self.sides) for column in zip(*self.sides, strict=True)):
            raise ValueError(f"sides is {self.sides}; accepted: pairs of a side and its id, each of them once")
        if self.fixed_size is not None and (len(self.fixed_size) not in AXES or min(self.fixed_size) < 1):
            raise ValueError(f"fixed_size is {self.fixed_size}; accepted: one of {axes_in_words()}, with sides of at least 1 token")
        if self.num_axes not in AXES or self.num_axes != len(self.fixed_size or range(self.num_axes)):
            raise ValueError(f"axes is {self.axes}, fixed_size {self.fixed_size}; accepted: 1, 2 or 3, as many as a fixed size has")
        if self.frame_end is not None and self.num_axes < 3:
            raise ValueError(f"frame_end is {self.frame_end} with {self.num_axes} axes; accepted: None, or three axes (T, H, W)")

    @property
    def num_axes(self) -> int:
        """Sides of a size: 1, 2 or 3."""
        return self.axes if self.axes is not None else 2 if self.fixed_size is None else len(self.fixed_size)

    @property
    def num_levels(self) -> int:
        """Q: tokens of a place."""
        return len(self.codes.sizes)

    @property
    def structure(self) -> frozenset[int]:
        """The ids that stand inside an image alone, after ``begin``, and are no codes."""
        ids = (self.image, self.row_end, self.frame_end, *self.closing, *(own for _, own in self.sides))
        return frozenset(i for i in ids if i is not None)

    def head(self, *size: int) -> list[int]:
        """What stands before the first code: ``begin``, the size and ``image``, as far as the format has them."""
        ids = [self.begin, *self.size_ids(*size), self.image]
        return [i for i in ids if i is not None]

    def size_ids(self, *size: int) -> list[int]:
        """The size as token ids, such as ``"height*width"``: one id per digit, or per side; none where the size is fixed.

        Raises:
            ValueError: a side that has no id.
        """
        if self.fixed_size is not None:
            return []
        if self.sides:
            known = dict(self.sides)
            if not known.keys() >= set(size):
                raise ValueError(f"size is {size}; accepted: sides of {_some_of(sorted(known))} tokens")
            return [known[side] for side in size]
        between = () if self.times is None else (self.times,)
        sides = [[self.digits[int(digit)] for digit in str(side)] for side in size]
        return [i for number, side in enumerate(sides) for i in (*(between if number else ()), *side)]

    def body(self, *size: int) -> "GridFormat":
        """The format of the rows of a grid of this size alone, with nothing around them."""
        return GridFormat(
            begin=None,
            closing=(),
            codes=self.codes,
            row_end=self.row_end,
            last_row_end=self.last_row_end,
            frame_end=self.frame_end,
            fixed_size=size,
        )

    def write(self, codes: Int[Tensor, "*size_and_q"]) -> GridText:
        """A grid of codes as ids, from ``begin`` to the end of ``closing``.

        Args:
            codes: (N,), (H, W) or (T, H, W), as many axes as the format has; with Q last where there are several codebooks.

        Raises:
            ValueError: if a code is outside the visual vocabulary, the grid is empty, or of another size than a fixed one.
        """
        size = grid_size(codes, self.num_axes, self.codes.sizes)
        if self.fixed_size not in (None, size):
            raise ValueError(f"codes has shape {tuple(codes.shape)}; accepted: {self.fixed_size}, the only size of this format")
        head = torch.tensor(self.head(*size), dtype=torch.long)
        offset = torch.arange(self.length(*size))
        body = self.expected(offset, *size)
        is_code = body == ANY_CODE
        body[is_code] = self.codes.to_vocabulary(codes.cpu()).flatten()

        place = torch.full((len(head) + len(body), 3), -1)
        place[len(head) :][is_code] = places_of(size).repeat_interleave(self.num_levels, dim=0)
        return GridText(torch.cat([head, body]), place)

    def length(self, *size: int) -> int:
        """How many tokens follow the head, the closing ones included."""
        return self._rows_end(*size) + len(self.closing)

    def expected(self, offset: Int[Tensor, "*N"], *size: int | Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """The id that must stand ``offset`` tokens after the head, or ``ANY_CODE``, or ``FINISHED``. Batched."""
        rows_end = self._rows_end(*size)
        inside = torch.full_like(offset, ANY_CODE)
        within = offset if self.frame_end is None else offset % self._frame_length(*size)
        if self.row_end is not None:
            width = size[-1] * self.num_levels
            inside = torch.where(within % (width + 1) == width, self.row_end, inside)
        if self.frame_end is not None:
            inside = torch.where(within == self._frame_length(*size) - 1, self.frame_end, inside)
        closing = torch.tensor([*self.closing, FINISHED], device=offset.device)
        after = closing[(offset - rows_end).clamp(0, len(self.closing))]
        return torch.where(offset < rows_end, inside, after)

    def place(self, offset: int, width: int) -> tuple[int, int]:
        """(row, column) of the code that stands ``offset`` tokens after the head, in an image or a frame."""
        row, column = divmod(offset, width * self.num_levels + (self.row_end is not None))
        return row, column // self.num_levels

    def place_in(self, offset: int, *size: int) -> tuple[int, int, int]:
        """(t, h, w) of the code that stands ``offset`` tokens after the head of a grid of this size."""
        _, height, width = three_sides(size)
        frame, within = divmod(offset, self._frame_length(*size)) if self.frame_end is not None else (0, offset)
        row, column = self.place(within, width)
        return (frame, row, column) if self.frame_end is not None else (*divmod(row, height), column)

    def level(self, offset: int, *size: int) -> int:
        """The level (of Q) of the code that stands ``offset`` tokens after the head; its ids are ``codes.ranges_of(level)``."""
        within = offset % self._frame_length(*size) if self.frame_end is not None else offset
        return within % (size[-1] * self.num_levels + (self.row_end is not None)) % self.num_levels

    def read(self, ids: Sequence[int]) -> list[list[int] | Int[Tensor, "*size_and_q"]]:
        """Splits a row of ids into runs of text ids (lists) and images (grids of codes), in order.

        Raises:
            ValueError: if an image is broken off, or its tokens do not follow the format.
        """
        pieces: list[list[int] | Tensor] = []
        text: list[int] = []
        at = 0
        while at < len(ids):
            if self.begin is not None and ids[at] != self.begin:
                text.append(int(ids[at]))
                at += 1
                continue
            if text:
                pieces.append(text)
                text = []
            grid, at = self._read_image(ids, at)
            pieces.append(grid)
        return [*pieces, text] if text else pieces

    def read_image(self, ids: Sequence[int]) -> Int[Tensor, "*size_and_q"]:
        """The codes of one image, written out from ``begin`` to the end of ``closing``.

        Raises:
            ValueError: if the ids are not one whole image in this format.
        """
        if not ids or self.begin not in (None, ids[0]):
            raise ValueError(f"ids begin with {list(ids[:1])}; accepted: an image, which begins with {self.begin}")
        grid, end = self._read_image(ids, 0)
        if end != len(ids):
            raise ValueError(f"ids hold {len(ids) - end} tokens after the image; accepted: one whole image")
        return grid

    @overload
    def _rows_end(self, *size: int) -> int: ...

    @overload
    def _rows_end(self, *size: int | Tensor) -> int | Tensor: ...

    def _rows_end(self, *size: int | Tensor) -> int | Tensor:
        """The offset after the last row; of numbers or of tensors."""
        return self._frame_length(*size) if self.frame_end is None else size[0] * self._frame_length(*size)

    @overload
    def _frame_length(self, *size: int) -> int: ...

    @overload
    def _frame_length(self, *size: int | Tensor) -> int | Tensor: ...

    def _frame_length(self, *size: int | Tensor) -> int | Tensor:
        """Tokens of a frame with what closes it; of all frames where nothing does."""
        frames, height, width = three_sides(size)
        rows = height if self.frame_end is not None else frames * height
        if self.row_end is None:
            return rows * width * self.num_levels + int(self.frame_end is not None)
        return rows * (width * self.num_levels + 1) - int(not self.last_row_end) + int(self.frame_end is not None)

    def _read_image(self, ids: Sequence[int], at: int) -> tuple[Tensor, int]:
        """The grid of the image that begins at ``at``, and the place after its last token."""
        at += self.begin is not None
        if self.fixed_size is not None:
            size = self.fixed_size
        else:
            end = self._size_end(ids, at)
            size = self.read_size([int(i) for i in ids[at:end]])
            at = end + (self.image is not None)
        title = "x".join(map(str, size))
        length = self.length(*size)
        body = torch.as_tensor(ids[at : at + length])
        expected = self.expected(torch.arange(length), *size)
        if len(body) < len(expected):
            raise ValueError(f"ids end inside a {title} image: {len(body)} of {len(expected)} tokens are there")
        is_code = expected == ANY_CODE
        broken = f"ids of a {title} image do not follow the format (row ends, closing, codes)"
        if not (is_code | (body == expected)).all():
            raise ValueError(broken)
        try:
            codes = self.codes.from_vocabulary(body[is_code].reshape(size if self.num_levels == 1 else (*size, self.num_levels)))
        except ValueError as error:
            raise ValueError(f"{broken}: {error}") from error
        return codes, at + len(expected)

    def _size_end(self, ids: Sequence[int], at: int) -> int:
        """The place after the last id of the size that begins at ``at``."""
        if self.sides:
            return at + self.num_axes
        while at < len(ids) and ids[at] != self.image:
            at += 1
        return at

    def read_size(self, ids: list[int]) -> tuple[int, ...]:
        """(height, width), or as many sides as the format has, from the ids that spell it.

        Raises:
            ValueError: if they spell no size.
        """
        if self.sides:
            known = {own: side for side, own in self.sides}
            if len(ids) != self.num_axes or not known.keys() >= set(ids):
                raise ValueError(f"ids {ids} after begin are no size; accepted: {self.num_axes} of {_some_of(sorted(known))}")
            return tuple(known[own] for own in ids)
        spelled = "".join("*" if i == self.times else str(self.digits.index(i)) if i in self.digits else "?" for i in ids)
        sides = spelled.split("*")
        if len(sides) != self.num_axes or not all(side.isdigit() and int(side) for side in sides):
            example = "*".join(("2", "3", "4")[: self.num_axes])
            raise ValueError(f"ids {ids} between begin and image do not spell a size such as {example}")
        return tuple(int(side) for side in sides)


def _some_of(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: all of a few, or the ends of many."""
    return ", ".join(map(str, numbers)) if len(numbers) < 4 else f"{numbers[0]}, {numbers[1]}, ... {numbers[-1]}"


def chameleon_format(code_ids: CodeIds | Sequence[int] = CodeIds(sizes=(8192,), first=4)) -> GridFormat:  # noqa: B008  frozen
    """Chameleon's format, which Anole and Lumina-mGPT's base share: 1024 codes between two ids, without row ends.

    Args:
        code_ids: ``chameleon_code_ids(vocabulary)``. Without it code k is taken for id 4 + k: enough to say which ids may come,
            but the tokenizer's codes are in another order. A sequence of the ids is taken too until version 0.3.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon).

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import chameleon_format
        >>> form = chameleon_format()
        >>> len(form.write(torch.zeros(32, 32, dtype=torch.long)).ids)  # 1024 codes between two ids
        1026
    """
    if not isinstance(code_ids, CodeIds):
        warnings.warn("code_ids is a CodeIds now; a sequence is no longer taken from version 0.3 on", FutureWarning, stacklevel=2)
        code_ids = CodeIds(sizes=(len(code_ids),), table=tuple(code_ids))
    return GridFormat(begin=8197, closing=(8196,), codes=code_ids, fixed_size=(32, 32))


def raster_format(height: int, width: int, num_codes: int) -> GridFormat:
    """Codes alone, row after row, of one size: LlamaGen and other models that write nothing but an image.

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import raster_format
        >>> raster_format(2, 3, 16).write(torch.tensor([[5, 6, 7], [8, 9, 10]])).ids.tolist()
        [5, 6, 7, 8, 9, 10]
    """
    return GridFormat(begin=None, closing=(), codes=CodeIds(sizes=(num_codes,), first=0), fixed_size=(height, width))


EMU3 = GridFormat(
    begin=151852,
    image=151851,
    row_end=151846,
    digits=tuple(range(15, 25)),
    times=9,
    last_row_end=True,
    closing=(151847, 151853),
    codes=CodeIds(sizes=(32768,), first=151854),
)
"""Emu3's format and ids. Source: baaivision/Emu3."""

EMU35 = replace(EMU3, last_row_end=False, closing=(151853,), codes=replace(EMU3.codes, sizes=(131072,)))
"""Emu3.5's format and ids. Source: baaivision/Emu3.5."""
