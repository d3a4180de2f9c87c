"""Where a tokenizer's codes stand in a language model's vocabulary, and ways there and back: for ids, logits and soft choices.

Shapes: K codes of a codebook, Q code numbers a token, V ids of the vocabulary, any leading axes where "*".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmblocks.support.checks import is_readable


@dataclass(frozen=True, kw_only=True)
class CodeIds:
    """The vocabulary ids of codes.

        CodeIds(sizes=(32768,), first=151854)                    # Emu3: code k is id 151854 + k
        CodeIds(sizes=(16384,), first=32002)                     # LaVIT
        CodeIds(sizes=(4096,) * 8, first=32000)                  # eight codebooks, one range after the other
        CodeIds(sizes=(4096,) * 8, first=32000, shared=True)     # eight codebooks, all in the same range
        CodeIds(sizes=(8192,), table=ids_by_code)                # Chameleon: any ids in any order; see ``chameleon_code_ids``

    Code numbers have the shape a tokenizer gives them: (*N) of one codebook, (*N, Q) of several.

    Attributes:
        sizes: K of each of the Q numbers of a token: a tokenizer's ``codebook_sizes``.
        first: id of code 0.
        shared: whether all codebooks begin at ``first``, or each after the one before.
        table: instead of ``first``, the id of each code; of several codebooks one after the other, unless they are shared.

    Raises:
        ValueError: no codebook, both or neither of ``first`` and ``table``, negative ids, a table of another length or with an
            id twice.

    Examples:
        >>> import torch
        >>> from mmblocks.vocabulary import CodeIds
        >>> ids = CodeIds(sizes=(8, 8), first=100)
        >>> ids.to_vocabulary(torch.tensor([[3, 5]])).tolist()
        [[103, 113]]
        >>> ids.from_vocabulary(torch.tensor([[103, 113]])).tolist(), ids.stop
        ([[3, 5]], 116)
    """

    sizes: tuple[int, ...]
    first: int | None = None
    shared: bool = False
    table: tuple[int, ...] | None = None
    _known: tuple[Tensor, Tensor, Tensor] | None = field(init=False, default=None, repr=False, compare=False)
    """The table's ids, the same in ascending order, and the places these have in the table."""
    _spans: tuple[tuple[int, int], ...] = field(init=False, default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes is {self.sizes}; accepted: the size of at least one codebook, 1 or more each")
        if (self.first is None) == (self.table is None):
            raise ValueError(f"first is {self.first} and table {'not ' * (self.table is None)}given; accepted: one of the two")
        if self.first is not None and self.first < 0:
            raise ValueError(f"first is {self.first}; accepted: 0 or more")
        if self.table is None:
            object.__setattr__(self, "_spans", (((self.first or 0), (self.first or 0) + self.num_ids),))
            return
        different = set(self.table)
        if len(self.table) != self.num_ids or len(different) != self.num_ids or min(different) < 0:
            found = f"{len(self.table)} ids, {len(different)} of them different, from {min(different, default=None)}"
            raise ValueError(f"table holds {found}; accepted: {self.num_ids} different ids, 0 or more")
        with torch.inference_mode(False):  # Gradients must be able to use it later.
            ids = torch.tensor(self.table, device="cpu")
            object.__setattr__(self, "_known", (ids, *ids.sort()))
        object.__setattr__(self, "_spans", _ranges_of(sorted(self.table)))

    def __hash__(self) -> int:
        """Leaves out the table, whose thousands of ids take long."""
        return hash((self.sizes, self.first))

    @property
    def num_ids(self) -> int:
        """How many ids of the vocabulary are codes."""
        return max(self.sizes) if self.shared else sum(self.sizes)

    @property
    def start(self) -> int:
        """The lowest id of a code."""
        return self.ranges[0][0]

    @property
    def stop(self) -> int:
        """The first id after all codes: a vocabulary is at least that large."""
        return self.ranges[-1][1]

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ids of codes as ranges ``first <= id < stop``, in ascending order; one where no other id stands between them."""
        return self._spans

    def ranges_of(self, number: int) -> tuple[tuple[int, int], ...]:
        """The ids of one codebook's codes, as ``ranges``.

        Raises:
            ValueError: no such number.
        """
        begin, count = self._place(number)
        if self.table is None:
            return ((self.start + begin, self.start + begin + count),)
        return _ranges_of(sorted(self.table[begin : begin + count]))

    def ids(self, number: int | None = None, *, device: torch.device | str = "cpu") -> Int[Tensor, " K"]:
        """The vocabulary ids of one codebook's codes in their order, or of all codes: rows of an embedding, columns of logits.

        Args:
            number: which of the Q.
            device: where to put them.

        Raises:
            ValueError: no such number.
        """
        begin, count = (0, self.num_ids) if number is None else self._place(number)
        if self._known is not None:
            return self._known[0][begin : begin + count].to(device, copy=True)
        return torch.arange(begin, begin + count, device=device) + self.start

    def to_vocabulary(self, codes: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Code numbers (*N) or (*N, Q) to vocabulary ids of the same shape.

        Raises:
            TypeError: codes that are no integers.
            ValueError: another Q, or a code that does not exist (checked on CPU).
        """
        self._check(codes, "codes")
        codes = codes.long()
        sizes, begins = self._per_number(codes)
        wrong = (codes < 0) | (codes >= sizes)
        if _any(wrong):
            last = _listed([size - 1 for size in self.sizes])
            raise ValueError(f"codes hold {_some(codes[wrong])}; accepted: [0, {last}]")
        places = codes + begins
        return places + self.start if self._known is None else self._known[0].to(codes.device)[places]

    def from_vocabulary(self, ids: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Vocabulary ids to code numbers: the inverse of ``to_vocabulary``.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another Q, or an id that is no code of its codebook (checked on CPU).
        """
        self._check(ids, "ids")
        places = self.places(ids)
        sizes, begins = self._per_number(ids)
        codes = places - begins
        wrong = (places < 0) | (codes < 0) | (codes >= sizes)
        if _any(wrong):
            raise ValueError(f"ids hold {_some(ids[wrong])}; accepted: {self._ranges()}")
        return codes

    def places(self, ids: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Which of all codes each id stands for, counted through the codebooks; negative where an id stands for none."""
        ids = ids.long()
        if self._known is None:
            places = ids - self.start
            return places.where(places < self.num_ids, -1)
        known, order = (tensor.to(ids.device) for tensor in self._known[1:])
        nearest = torch.searchsorted(known, ids).clamp(max=self.num_ids - 1)
        return order[nearest].where(known[nearest] == ids, -1)

    def is_code(self, ids: Int[Tensor, "*N"]) -> Bool[Tensor, "*N"]:
        """True where an id of the vocabulary stands for a code, of whichever codebook; any ids may be asked about."""
        return self.places(ids) >= 0

    def allowed(self, vocab_size: int, number: int | None = None, *, device: torch.device | str = "cpu") -> Bool[Tensor, " V"]:
        """True at the ids of one codebook, or of all: what may be drawn where a code comes next.

        Raises:
            ValueError: a vocabulary that does not hold all codes, or no such number.
        """
        self._check_vocabulary(vocab_size)
        return torch.zeros(vocab_size, dtype=torch.bool, device=device).index_fill_(0, self.ids(number, device=device), True)

    def take(self, values: Float[Tensor, "*N V"], number: int = 0) -> Float[Tensor, "*N K"]:
        """Of one value for each id, those of one codebook's codes, in their order. Gradients flow.

        Of logits, the softmax of what is taken is a soft choice of codes, as a codebook's ``mix`` reads it.

        Raises:
            ValueError: values for a vocabulary that does not hold all codes, or no such number.
        """
        self._check_vocabulary(values.shape[-1])
        begin, count = self._place(number)
        if self.table is None:
            return values.narrow(-1, self.start + begin, count)
        return values.index_select(-1, self.ids(number, device=values.device))

    def place(self, weights: Float[Tensor, "*N K"], vocab_size: int, number: int = 0) -> Float[Tensor, "*N V"]:
        """A soft choice among one codebook's codes as one in the vocabulary, zero elsewhere. Gradients flow.

        Raises:
            ValueError: another K, a vocabulary that does not hold all codes, or no such number.
        """
        self._check_vocabulary(vocab_size)
        _, count = self._place(number)
        if weights.shape[-1] != count:
            raise ValueError(f"weights has shape {tuple(weights.shape)}; accepted: (*, {count})")
        whole = weights.new_zeros(*weights.shape[:-1], vocab_size)
        return whole.index_copy(-1, self.ids(number, device=weights.device), weights)

    @property
    def _begins(self) -> tuple[int, ...]:
        """How many ids stand before each codebook's."""
        return (0,) * len(self.sizes) if self.shared else tuple(accumulate(self.sizes[:-1], initial=0))

    def _place(self, number: int) -> tuple[int, int]:
        """(begin, count) of one codebook among all ids."""
        if not 0 <= number < len(self.sizes):
            raise ValueError(f"number is {number}; accepted: 0 to {len(self.sizes) - 1}")
        return self._begins[number], self.sizes[number]

    def _per_number(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes and begins, which broadcast over (*N) or (*N, Q)."""
        both = torch.tensor([self.sizes, self._begins], device=like.device)
        sizes, begins = both if len(self.sizes) > 1 else both[:, 0]
        return sizes, begins

    def _check(self, numbers: Tensor, name: str) -> None:
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise TypeError(f"{name} are {numbers.dtype}; accepted: integers")
        count = len(self.sizes)
        if count > 1 and (numbers.ndim == 0 or numbers.shape[-1] != count):
            raise ValueError(f"{name} have shape {tuple(numbers.shape)}; accepted: (*, {count}), one number a codebook")

    def _check_vocabulary(self, vocab_size: int) -> None:
        if vocab_size < self.stop:
            raise ValueError(f"the vocabulary holds {vocab_size} ids; accepted: at least {self.stop}, which hold all codes")

    def _ranges(self) -> str:
        if self.table is not None:
            return f"the {self.num_ids} ids of the table, from {min(self.table)} to {self.stop - 1}"
        firsts = [self.start + begin for begin in self._begins]
        return f"[{_listed(firsts)}, {_listed([first + size - 1 for first, size in zip(firsts, self.sizes, strict=True)])}]"


def chameleon_code_ids(vocabulary: Mapping[str, int]) -> CodeIds:
    """Chameleon's: token "IMGIMG" + digits + "Z" stands for the code of that number, with A for 0 to J for 9.

    Args:
        vocabulary: token -> id, as in Chameleon's text tokenizer.

    Raises:
        ValueError: no such tokens, or not one for each of a row of codes.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon).
    """
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    names = [name for name in vocabulary if name.startswith("IMGIMG") and name.endswith("Z")]
    numbers = {name: name.removeprefix("IMGIMG")[:-1].translate(digits) for name in names}
    by_code = {int(number): vocabulary[name] for name, number in numbers.items() if number.isdigit()}
    if not by_code or sorted(by_code) != list(range(len(names))):
        raise ValueError(f"vocabulary holds {len(names)} tokens IMGIMG...Z; accepted: one for each code from IMGIMGAZ on")
    return CodeIds(sizes=(len(by_code),), table=tuple(by_code[code] for code in range(len(by_code))))


def _any(wrong: Tensor) -> bool:
    return is_readable(wrong) and bool(wrong.any())


def _some(numbers: Tensor) -> str:
    return ", ".join(map(str, numbers[:3].tolist()))


def _listed(values: list[int]) -> str:
    """One number where all are the same."""
    return str(values[0]) if len(set(values)) == 1 else "(" + ", ".join(map(str, values)) + ")"


def _ranges_of(ids: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending ids as ranges."""
    edges = [place for place in range(1, len(ids)) if ids[place] > ids[place - 1] + 1]
    return tuple((ids[low], ids[high - 1] + 1) for low, high in pairwise([0, *edges, len(ids)]))
