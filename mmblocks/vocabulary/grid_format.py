"""How a grid of visual codes is written as a row of token ids, as data: Emu3's and Emu3.5's formats and the like.

    begin  height x width (digits)  image  row row_end row row_end ... row [row_end]  closing...

Everything is a pure function of (height, width, offset), where the offset counts the tokens after the head, which ends
with ``image``. Which ids the codes have is said by ``CodeIds``.
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
        times: the id between height and width ("*").
        codes: the ids of the visual codes, of one codebook.
        fixed_size: (height, width) of every image, where the size is not written.

    Raises:
        ValueError: a size that is neither written nor fixed, or codes of several codebooks.

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import EMU3
        >>> grid = torch.tensor([[5, 6, 7], [8, 9, 10]])
        >>> ids = EMU3.write(grid).ids
        >>> len(ids) == len(EMU3.head(2, 3)) + EMU3.length(2, 3)
        True
        >>> torch.equal(EMU3.read_image(ids.tolist()), grid)
        True
    """

    begin: int | None
    closing: tuple[int, ...]
    codes: CodeIds
    image: int | None = None
    row_end: int | None = None
    last_row_end: bool = False
    digits: tuple[int, ...] = ()
    times: int | None = None
    fixed_size: tuple[int, int] | None = None

    first_code = former_attribute("first_code", "start")
    num_codes = former_attribute("num_codes", "num_ids")
    code_ids = former_attribute("code_ids", "table")

    def __post_init__(self) -> None:
        written = self.image is not None and self.times is not None and len(self.digits) == 10
        if written == (self.fixed_size is not None):
            raise ValueError(f"fixed_size is {self.fixed_size}; accepted: a size, or image, times and ten digits to write it with")
        if self.fixed_size is not None and min(self.fixed_size) < 1:
            raise ValueError(f"fixed_size is {self.fixed_size}; accepted: height and width of at least 1 token")
        if len(self.codes.sizes) > 1:
            raise ValueError(f"codes has {len(self.codes.sizes)} codebooks; accepted: one, whose codes are a token each")

    @property
    def structure(self) -> frozenset[int]:
        """The ids that stand inside an image alone, after ``begin``, and are no codes."""
        return frozenset(i for i in (self.image, self.row_end, *self.closing) if i is not None)

    def head(self, height: int, width: int) -> list[int]:
        """What stands before the first code: ``begin``, the size and ``image``, as far as the format has them."""
        ids = [self.begin, *self.size_ids(height, width), self.image]
        return [i for i in ids if i is not None]

    def size_ids(self, height: int, width: int) -> list[int]:
        """The size as token ids, ``"height*width"``: one id per digit; none where the size is fixed."""
        if self.times is None:
            return []
        return [*self._number(height), self.times, *self._number(width)]

    def write(self, codes: Int[Tensor, "H W"]) -> GridText:
        """A grid of codes as ids, from ``begin`` to the end of ``closing``.

        Raises:
            ValueError: if a code is outside the visual vocabulary, the grid is empty, or of another size than a fixed one.
        """
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"codes has shape {tuple(codes.shape)}; accepted: (H, W) with H and W at least 1")
        height, width = codes.shape
        if self.fixed_size not in (None, (height, width)):
            raise ValueError(f"codes has shape {(height, width)}; accepted: {self.fixed_size}, the only size of this format")
        head = torch.tensor(self.head(height, width), dtype=torch.long)
        offset = torch.arange(self.length(height, width))
        body = self.expected(offset, height, width)
        is_code = body == ANY_CODE
        body[is_code] = self.codes.to_vocabulary(codes.flatten().cpu())

        place = torch.full((len(head) + len(body), 3), -1)
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
        place[len(head) :][is_code] = grid
        return GridText(torch.cat([head, body]), place)

    def length(self, height: int, width: int) -> int:
        """How many tokens follow the head, the closing ones included."""
        return self._rows_end(height, width) + len(self.closing)

    def expected(
        self, offset: Int[Tensor, "*N"], height: int | Int[Tensor, "*N"], width: int | Int[Tensor, "*N"]
    ) -> Int[Tensor, "*N"]:
        """The id that must stand ``offset`` tokens after the head, or ``ANY_CODE``, or ``FINISHED``. Batched."""
        rows_end = self._rows_end(height, width)
        inside = torch.full_like(offset, ANY_CODE)
        if self.row_end is not None:
            inside = torch.where(offset % (width + 1) == width, self.row_end, inside)
        closing = torch.tensor([*self.closing, FINISHED], device=offset.device)
        after = closing[(offset - rows_end).clamp(0, len(self.closing))]
        return torch.where(offset < rows_end, inside, after)

    def place(self, offset: int, width: int) -> tuple[int, int]:
        """(row, column) of the code that stands ``offset`` tokens after the head."""
        return divmod(offset, width + (self.row_end is not None))

    def read(self, ids: Sequence[int]) -> list[list[int] | Int[Tensor, "H W"]]:
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

    def read_image(self, ids: Sequence[int]) -> Int[Tensor, "H W"]:
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
    def _rows_end(self, height: int, width: int) -> int: ...

    @overload
    def _rows_end(self, height: int | Tensor, width: int | Tensor) -> int | Tensor: ...

    def _rows_end(self, height: int | Tensor, width: int | Tensor) -> int | Tensor:
        """The offset after the last row; of numbers or of tensors."""
        if self.row_end is None:
            return height * width
        return height * (width + 1) - int(not self.last_row_end)

    def _number(self, value: int) -> list[int]:
        return [self.digits[int(digit)] for digit in str(value)]

    def _read_image(self, ids: Sequence[int], at: int) -> tuple[Tensor, int]:
        """The grid of the image that begins at ``at``, and the place after its last token."""
        at += self.begin is not None
        if self.fixed_size is not None:
            height, width = self.fixed_size
        else:
            first = at
            while at < len(ids) and ids[at] != self.image:
                at += 1
            height, width = self.read_size([int(i) for i in ids[first:at]])
            at += 1
        length = self.length(height, width)
        body = torch.as_tensor(ids[at : at + length])
        expected = self.expected(torch.arange(length), height, width)
        if len(body) < len(expected):
            raise ValueError(f"ids end inside a {height}x{width} image: {len(body)} of {len(expected)} tokens are there")
        codes, is_code = self.codes.places(body), expected == ANY_CODE
        if not torch.where(is_code, codes >= 0, body == expected).all():
            raise ValueError(f"ids of a {height}x{width} image do not follow the format (row ends, closing, codes)")
        return codes[is_code].reshape(height, width), at + len(expected)

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
