"""One step's choice: from the hidden states of all rows to their next ids, or vectors where an image is continuous.

Rows that may take the same ids, of the same head and under the same rules, are served together: their part of the head is
computed once and no other. Where one id alone is possible nothing is computed. Rows of one grammar that stand alike are looked at
once.

Shapes: S streams, B rows, N rows served together, D width, V ids served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.generation.grammar import ChoosingGrammar, Grammar, IdRange, State
from mmblocks.generation.guidance import ClassifierFree, Guidance
from mmblocks.generation.id_heads import IdHead as IdHead
from mmblocks.generation.id_heads import check_ids, ids_of
from mmblocks.generation.id_heads import id_head as id_head_named
from mmblocks.layers.categorical import Sampling, sample_ids
from mmblocks.roles import AnyHead, Head, check_role
from mmblocks.sequence.segments import NO_ID
from mmblocks.support.named import Named

FEW = 8
"""So many ranges are compared as fast as they are looked up."""

MOST_REMEMBERED = 256
"""Sets of allowed ids that one generation remembers."""


@dataclass(frozen=True, kw_only=True)
class ModalSampling:
    """Different sampling for text and for images, as Emu3.5 does; sizes and row ends are part of an image.

    Args:
        text: how text ids are sampled.
        image: how the ids of an image are sampled.

    Examples:
        >>> from mmblocks import GREEDY, Sampling
        >>> from mmblocks.generation import ModalSampling
        >>> sampling = ModalSampling(text=GREEDY, image=Sampling(top_k=5120))
        >>> sampling.text.temperature, sampling.image.temperature
        (0, 1.0)
    """

    text: Sampling
    image: Sampling


class Scores(NamedTuple):
    """What a hook sees: guided logits of the ids that the grammar allows, before temperature and truncation.

    Attributes:
        logits: minus infinity where the grammar forbids.
        first: the id of the first column.
        rows: which rows of the batch these are.
        states: where they stand.
        step: 0, 1, ... of the generation.
    """

    logits: Float[Tensor, "N V"]
    first: int
    rows: tuple[int, ...]
    states: tuple[State, ...]
    step: int


LogitsHook = Callable[[Scores], Tensor]
"""Scores -> logits of the same shape."""


class Chosen(NamedTuple):
    """The next token of every row.

    Attributes:
        ids: ``NO_ID`` where a vector comes.
        vectors: by row, where one comes.
    """

    ids: Int[Tensor, " B"]
    vectors: dict[int, Float[Tensor, " D2"]]


class _Allowed:
    """Ids that may come, looked at once. Two are equal where they are one object."""

    def __init__(self, ranges: tuple[IdRange, ...]) -> None:
        self.ranges = ranges
        self.first = min((first for first, _ in ranges), default=0)
        self.stop = max((stop for _, stop in ranges), default=0)
        self._forbidden: Tensor | None = None

    @property
    def only_id(self) -> bool:
        """Whether there is one alone."""
        return len(self.ranges) == 1 and self.stop - self.first == 1

    def forbidden(self, device: torch.device) -> Tensor | None:
        """True at the ids between the lowest and the highest that may not come; None where all may."""
        if len(self.ranges) > 1 and self._forbidden is None:
            mask = torch.ones(self.stop - self.first, dtype=torch.bool)
            for start, stop in self.ranges:
                mask[start - self.first : stop - self.first] = False
            self._forbidden = mask.to(device)
        return self._forbidden


class _Kind(NamedTuple):
    """What rows that are served together have in common."""

    allowed: _Allowed
    in_image: bool
    guided: bool
    head: str | None
    writes: str
    levels: tuple[bool, ...] = ()


class Chooser:
    """Chooses the next token of every row.

    Args:
        heads: by name; those over vectors need ``sample(hidden, generator=...)``, and ``unconditional=`` and ``guidance=`` to be
            guided by ``ClassifierFree``.
        id_head: the head over ids, where the grammar names none.
        guidance: how the streams become one.
        sampling: how ids are sampled.
        hooks: called in order on each group's scores.
        generator: source of randomness.
    """

    def __init__(
        self,
        heads: Named[AnyHead],
        id_head: IdHead | None,
        *,
        guidance: Guidance,
        sampling: Sampling | ModalSampling,
        hooks: Sequence[LogitsHook] = (),
        generator: Generator | Sequence[Generator] | None = None,
    ) -> None:
        self.heads, self.id_head, self.guidance, self.hooks = heads, id_head, guidance, tuple(hooks)
        self.sampling = sampling if isinstance(sampling, ModalSampling) else ModalSampling(text=sampling, image=sampling)
        self.generator = generator
        self._by_name: dict[str | None, tuple[IdHead, int]] = {}
        self._by_ranges: dict[tuple[IdRange, ...], _Allowed] = {}
        self._by_object: dict[int, _Allowed] = {}  # by id(); what is kept holds the object, so that no other can have its place

    def check(self, grammars: Sequence[Grammar], states: Sequence[State]) -> None:
        """Refuses ids that no head writes, as far as grammars say which they may choose: before anything is computed.

        Raises:
            TypeError: a head that is named for ids and writes none.
            ValueError: no such head, or ids outside of its range.
        """
        for grammar, state in {(id(one), state): (one, state) for one, state in zip(grammars, states, strict=True)}.values():
            if state.mode != "done" and isinstance(grammar, ChoosingGrammar):
                for name, ranges in grammar.choices(state):
                    allowed = _Allowed(ranges)
                    check_ids(self._id_head(name)[0], allowed.first, allowed.stop, name)

    def __call__(self, hidden: Float[Tensor, "SB D"], grammars: Sequence[Grammar], states: Sequence[State], step: int) -> Chosen:
        """Serves the rows group by group; the hidden states are those of the first stream, then of the second, ...

        Rows that write a span are left out: they have ``NO_ID``.
        """
        groups = self._groups(grammars, states)
        streams = hidden.view(self.guidance.num_streams, len(states), hidden.shape[-1])
        ids: list[Tensor] = []
        vectors: dict[int, Tensor] = {}
        for kind, rows in groups.items():
            if kind.writes == "vector":
                vectors.update(self._sample_all_vectors(kind, streams, rows, step))
            if kind.writes != "id":
                ids.append(torch.full((len(rows),), NO_ID, device=hidden.device))
            elif kind.allowed.only_id:
                ids.append(torch.full((len(rows),), kind.allowed.first, device=hidden.device))
            else:
                ids.append(self._sample_ids(streams if len(groups) == 1 else streams[:, rows], kind, rows, states, step))
        if len(ids) == 1:
            return Chosen(ids[0], vectors)
        order = torch.tensor([row for rows in groups.values() for row in rows], device=hidden.device)
        return Chosen(torch.cat(ids)[order.argsort()], vectors)

    def _groups(self, grammars: Sequence[Grammar], states: Sequence[State]) -> dict[_Kind, list[int]]:
        """Which rows are served together."""
        if len(self._by_object) > MOST_REMEMBERED or len(self._by_ranges) > MOST_REMEMBERED:
            self._by_object, self._by_ranges = {}, {}
        kinds: dict[tuple[int, State], _Kind] = {}
        groups: dict[_Kind, list[int]] = {}
        for row, (grammar, state) in enumerate(zip(grammars, states, strict=True)):
            stands = (id(grammar), state)
            if stands not in kinds:
                kinds[stands] = self._kind(grammar, state)
            groups.setdefault(kinds[stands], []).append(row)
        return groups

    def _kind(self, grammar: Grammar, state: State) -> _Kind:
        if state.mode == "done":
            return _Kind(self._allowed(((0, 1),)), False, False, None, "id")  # never read: any id will do
        described = grammar.describe(state)
        if described.writes != "id":
            return _Kind(self._allowed(()), True, False, described.head, described.writes, described.levels)
        guided = described.is_visual or not self.guidance.images_only
        return _Kind(self._allowed(grammar.allowed(state)), state.in_image, guided, described.head, "id")

    def _allowed(self, ranges: tuple[IdRange, ...]) -> _Allowed:
        """What is known of these ids. Thousands of ranges are compared once, and known as an object afterwards."""
        known = self._by_object.get(id(ranges)) if len(ranges) > FEW else None
        if known is None or known.ranges is not ranges:
            known = self._by_ranges.get(ranges)
            if known is None:
                known = self._by_ranges[ranges] = self._by_object[id(ranges)] = _Allowed(ranges)
        return known

    def _sample_all_vectors(self, kind: _Kind, streams: Float[Tensor, "S B D"], rows: list[int], step: int) -> dict[int, Tensor]:
        """Vectors of rows; row by row where each has a source of randomness of its own."""
        if isinstance(self.generator, Sequence):
            each = ((row, self._sample_vectors(kind, streams[:, [row]], step, self.generator[row])) for row in rows)
            return {row: values[0] for row, values in each}
        return dict(zip(rows, self._sample_vectors(kind, streams[:, rows], step, self.generator), strict=True))

    def _sample_vectors(self, kind: _Kind, hidden: Float[Tensor, "S N D"], step: int, generator: Generator | None) -> Tensor:
        """Vectors, or codes of several levels; guided where the head knows how, from the first stream alone elsewhere."""
        head = self.heads[str(kind.head)]
        check_role(head, Head, f"head {kind.head!r}, which is to write one vector after the other,", "sample")
        sample = cast(Head, head).sample
        known, rule = signature(sample).parameters, self.guidance
        more: dict[str, Any] = {}  # what heads take differs
        if kind.levels:
            more["present"] = torch.tensor(kind.levels, device=hidden.device).expand(hidden.shape[1], -1)
        if "sampling" in known:
            more["sampling"] = self.sampling.image
        if isinstance(rule, ClassifierFree) and (rule.last_step is None or step <= rule.last_step) and "unconditional" in known:
            more |= {"unconditional": hidden[1], "guidance": rule.scale}
        return sample(hidden[0], generator=generator, **more)

    def _id_head(self, name: str | None) -> tuple[IdHead, int]:
        """The head of that name, or the one where none is named; and the vocabulary's id of its first."""
        if name not in self._by_name:
            head = self.id_head if name is None else id_head_named(self.heads, name)
            if head is None:
                raise ValueError("an id is to be written and no head over ids is named: name it with head=")
            self._by_name[name] = head, ids_of(head)[0]
        return self._by_name[name]

    def _sample_ids(
        self, hidden: Float[Tensor, "S N D"], kind: _Kind, rows: list[int], states: Sequence[State], step: int
    ) -> Int[Tensor, " N"]:
        (head, own), first, stop = self._id_head(kind.head), kind.allowed.first, kind.allowed.stop
        if first < own or stop - own > head.vocab_size:
            check_ids(head, first, stop, kind.head)
        if kind.guided:
            logits = head.logits(hidden.flatten(0, 1), first - own, stop - own)
            logits = self.guidance.combine(logits.view(*hidden.shape[:2], -1), step)
        else:
            logits = head.logits(hidden[0], first - own, stop - own)
        forbidden = kind.allowed.forbidden(logits.device)
        if forbidden is not None:
            logits = logits.masked_fill(forbidden, float("-inf"))
        for hook in self.hooks:
            logits = hook(Scores(logits, first, tuple(rows), tuple(states[row] for row in rows), step))
        if forbidden is not None and self.hooks:
            logits = logits.masked_fill(forbidden, float("-inf"))  # whatever a hook says of them
        sampling = self.sampling.image if kind.in_image else self.sampling.text
        source = [self.generator[row] for row in rows] if isinstance(self.generator, Sequence) else self.generator
        return sample_ids(logits, sampling, generator=source) + first
