"""How a grid of visual codes is written as a row of token ids, as data: Emu3's and Emu3.5's formats and the like.

    begin  height x width (digits)  image  row row_end row row_end ... row [row_end]  closing...

Everything is a pure function of (height, width, offset), where the offset counts the tokens behind ``image``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class GridFormat:
    """The ids and the order in which a model's vocabulary writes an image.

    Attributes:
        begin: opens an image (Emu3: ``<|image start|>``).
        image: stands between the size and the first code (``<|image token|>``).
        row_end: closes a row (``<|extra_200|>``).
        last_row_end: whether the last row is closed too (Emu3 yes, Emu3.5 no).
        closing: what follows the last row; its last id ends the image (``<|image end|>``).
        digits: the ids of "0" ... "9", which write the size.
        times: the id between height and width ("*").
        first_code: id of visual code 0; code k has ``first_code + k``.
        num_codes: size of the visual vocabulary.
    """

    begin: int
    image: int
    row_end: int
    last_row_end: bool
    closing: tuple[int, ...]
    digits: tuple[int, ...]
    times: int
    first_code: int
    num_codes: int

    def size_ids(self, height: int, width: int) -> list[int]:
        """The size as token ids, ``"height*width"``: one id per digit."""
        return [*self._number(height), self.times, *self._number(width)]

    def write(self, codes: Int[Tensor, "H W"]) -> GridText:
        """A grid of codes in [0, num_codes) as ids, from ``begin`` to the end of ``closing``.

        Raises:
            ValueError: if a code is outside the visual vocabulary or the grid is empty.
        """
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"codes has shape {tuple(codes.shape)}; accepted: (H, W) with H and W at least 1")
        if codes.min() < 0 or codes.max() >= self.num_codes:
            found = f"[{int(codes.min())}, {int(codes.max())}]"
            raise ValueError(f"codes lie in {found}; accepted: [0, {self.num_codes - 1}]")
        height, width = codes.shape
        head = torch.tensor([self.begin, *self.size_ids(height, width), self.image])
        offset = torch.arange(self.length(height, width))
        body = self.expected(offset, height, width)
        is_code = body == ANY_CODE
        body[is_code] = codes.flatten().cpu() + self.first_code

        place = torch.full((len(head) + len(body), 3), -1)
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
        place[len(head) :][is_code] = grid
        return GridText(torch.cat([head, body]), place)

    def length(self, height: int, width: int) -> int:
        """How many tokens follow ``image``, the closing ones included."""
        return height * (width + 1) - int(not self.last_row_end) + len(self.closing)

    def expected(
        self, offset: Int[Tensor, "*N"], height: int | Int[Tensor, "*N"], width: int | Int[Tensor, "*N"]
    ) -> Int[Tensor, "*N"]:
        """The id that must stand ``offset`` tokens behind ``image``, or ``ANY_CODE``, or ``FINISHED``. Batched."""
        rows_end = height * (width + 1) - int(not self.last_row_end)
        column = offset % (width + 1)
        inside = torch.where(column == width, self.row_end, ANY_CODE)
        closing = torch.tensor([*self.closing, FINISHED], device=offset.device)
        after = closing[(offset - rows_end).clamp(0, len(self.closing))]
        return torch.where(offset < rows_end, inside, after)

    def place(self, offset: int, width: int) -> tuple[int, int]:
        """(row, column) of the code that stands ``offset`` tokens behind ``image``."""
        return offset // (width + 1), offset % (width + 1)

    def read(self, ids: Sequence[int]) -> list[list[int] | Int[Tensor, "H W"]]:
        """Splits a row of ids into runs of text ids (lists) and images (grids of codes), in order.

        Raises:
            ValueError: if an image is broken off, or its tokens do not follow the format.
        """
        pieces: list[list[int] | Tensor] = []
        text: list[int] = []
        at = 0
        while at < len(ids):
            if ids[at] != self.begin:
                text.append(int(ids[at]))
                at += 1
                continue
            if text:
                pieces.append(text)
                text = []
            grid, at = self._read_image(ids, at + 1)
            pieces.append(grid)
        return [*pieces, text] if text else pieces

    def read_image(self, ids: Sequence[int]) -> Int[Tensor, "H W"]:
        """The codes of one image, written out from ``begin`` to the end of ``closing``.

        Raises:
            ValueError: if the ids are not one whole image in this format.
        """
        if not ids or ids[0] != self.begin:
            raise ValueError(f"ids begin with {list(ids[:1])}; accepted: an image, which begins with {self.begin}")
        grid, end = self._read_image(ids, 1)
        if end != len(ids):
            raise ValueError(f"ids hold {len(ids) - end} tokens behind the image; accepted: one whole image")
        return grid

    def _number(self, value: int) -> list[int]:
        return [self.digits[int(digit)] for digit in str(value)]

    def _read_image(self, ids: Sequence[int], at: int) -> tuple[Tensor, int]:
        """The grid whose size begins at ``at``, and the place behind its last token."""
        size: list[int] = []
        while at < len(ids) and ids[at] != self.image:
            size.append(int(ids[at]))
            at += 1
        height, width = self.read_size(size)
        body = torch.as_tensor(ids[at + 1 : at + 1 + self.length(height, width)])
        expected = self.expected(torch.arange(self.length(height, width)), height, width)
        if len(body) < len(expected):
            raise ValueError(f"ids end inside a {height}x{width} image: {len(body)} of {len(expected)} tokens are there")
        codes = body[expected == ANY_CODE] - self.first_code
        misplaced = (expected != ANY_CODE) & (body != expected)
        if misplaced.any() or codes.min() < 0 or codes.max() >= self.num_codes:
            raise ValueError(f"ids of a {height}x{width} image do not follow the format (row ends, closing, codes)")
        return codes.reshape(height, width), at + 1 + len(expected)

    def read_size(self, ids: list[int]) -> tuple[int, int]:
        """(height, width) from the ids that spell it.

        Raises:
            ValueError: if they spell no size.
        """
        spelled = "".join("*" if i == self.times else str(self.digits.index(i)) if i in self.digits else "?" for i in ids)
        height, times, width = spelled.partition("*")
        if not (times and height.isdigit() and width.isdigit() and int(height) and int(width)):
            raise ValueError(f"ids {ids} between begin and image do not spell a size such as 2*3")
        return int(height), int(width)


_EMU3_TEXT = {
    "begin": 151852,
    "image": 151851,
    "row_end": 151846,
    "digits": tuple(range(15, 25)),
    "times": 9,
    "first_code": 151854,
}

EMU3 = GridFormat(**_EMU3_TEXT, last_row_end=True, closing=(151847, 151853), num_codes=32768)  # type: ignore[arg-type]
"""Emu3's format and ids. Source: baaivision/Emu3."""

EMU35 = GridFormat(**_EMU3_TEXT, last_row_end=False, closing=(151853,), num_codes=131072)  # type: ignore[arg-type]
"""Emu3.5's format and ids. Source: baaivision/Emu3.5."""
