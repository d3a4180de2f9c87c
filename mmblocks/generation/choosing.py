"""One step's choice: from the hidden states of all rows to their next ids, or vectors where an image is continuous.

Rows that may take the same ids, and take them under the same rules, are served together: their part of the head is computed
once and no other. Where one id alone is possible nothing is computed.

Shapes: S streams, B rows, N rows served together, D width, V ids served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.generation.grammar import Grammar, IdRange, State
from mmblocks.generation.guidance import ClassifierFree, Guidance
from mmblocks.layers.categorical import Sampling, sample_ids
from mmblocks.roles import AnyHead, Head
from mmblocks.sequence.segments import NO_ID
from mmblocks.support.named import Named


@runtime_checkable
class IdHead(Protocol):
    """A head over ids, as the loop needs it."""

    vocab_size: int

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(N, D) -> float32 logits of the ids ``start:stop``."""
        ...


class GuidedHead(Protocol):
    """A head over vectors that guides them itself."""

    def sample(
        self, hidden: Tensor, *, unconditional: Tensor | None, guidance: float | None, generator: Generator | None
    ) -> Tensor:
        """One vector per row."""
        ...


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


class _Kind(NamedTuple):
    """What rows that are served together have in common."""

    allowed: tuple[IdRange, ...]
    in_image: bool
    guided: bool
    head: str | None


class Chooser:
    """Chooses the next token of every row.

    Args:
        heads: by name; those over vectors need ``sample(hidden, generator=...)``, and ``unconditional=`` and ``guidance=`` to be
            guided by ``ClassifierFree``.
        id_head: the head over ids.
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
        generator: Generator | None = None,
    ) -> None:
        self.heads, self.id_head, self.guidance, self.hooks = heads, id_head, guidance, tuple(hooks)
        self.sampling = sampling if isinstance(sampling, ModalSampling) else ModalSampling(text=sampling, image=sampling)
        self.generator = generator
        self._forbidden: dict[tuple[IdRange, ...], Tensor] = {}

    def __call__(self, hidden: Float[Tensor, "SB D"], grammars: Sequence[Grammar], states: Sequence[State], step: int) -> Chosen:
        """Serves the rows group by group; the hidden states are those of the first stream, then of the second, ..."""
        groups: dict[_Kind, list[int]] = {}
        for row, (grammar, state) in enumerate(zip(grammars, states, strict=True)):
            groups.setdefault(self._kind(grammar, state), []).append(row)
        streams = hidden.view(self.guidance.num_streams, len(states), hidden.shape[-1])
        ids: list[Tensor] = []
        vectors: dict[int, Tensor] = {}
        for kind, rows in groups.items():
            if kind.head is not None:
                values = self._sample_vectors(cast(Head, self.heads[kind.head]), streams[:, rows], step)
                vectors.update(zip(rows, values, strict=True))
                ids.append(torch.full((len(rows),), NO_ID, device=hidden.device))
            elif _only_id(kind.allowed) is not None:
                ids.append(torch.full((len(rows),), kind.allowed[0][0], device=hidden.device))
            else:
                at = slice(None) if len(groups) == 1 else rows
                ids.append(self._sample_ids(streams[:, at], kind, rows, states, step))
        if len(ids) == 1:
            return Chosen(ids[0], vectors)
        order = torch.tensor([row for rows in groups.values() for row in rows], device=hidden.device)
        return Chosen(torch.cat(ids)[order.argsort()], vectors)

    def _kind(self, grammar: Grammar, state: State) -> _Kind:
        if state.mode == "done":
            return _Kind(((0, 1),), False, False, None)  # never read: any id will do
        described = grammar.describe(state)
        if described.writes == "vector":
            return _Kind((), True, False, described.head)
        guided = described.is_visual or not self.guidance.images_only
        return _Kind(grammar.allowed(state), state.in_image, guided, None)

    def _sample_vectors(self, head: Head, hidden: Float[Tensor, "S N D"], step: int) -> Tensor:
        """Vectors; guided where the head knows how, from the first stream alone elsewhere."""
        rule = self.guidance
        if isinstance(rule, ClassifierFree) and (rule.last_step is None or step <= rule.last_step) and _guides(head):
            guided = cast(GuidedHead, head)
            return guided.sample(hidden[0], unconditional=hidden[1], guidance=rule.scale, generator=self.generator)
        return head.sample(hidden[0], generator=self.generator)

    def _sample_ids(
        self, hidden: Float[Tensor, "S N D"], kind: _Kind, rows: list[int], states: Sequence[State], step: int
    ) -> Int[Tensor, " N"]:
        if self.id_head is None:
            raise ValueError("an id is to be written and no head over ids is named: name it with head=")
        first, stop = _span(kind.allowed)
        if stop > self.id_head.vocab_size:
            raise ValueError(f"the grammar allows ids up to {stop - 1}; the head writes ids below {self.id_head.vocab_size}")
        if kind.guided:
            logits = self.id_head.logits(hidden.flatten(0, 1), first, stop)
            logits = self.guidance.combine(logits.view(*hidden.shape[:2], -1), step)
        else:
            logits = self.id_head.logits(hidden[0], first, stop)
        if len(kind.allowed) > 1:
            logits = logits.masked_fill(self._mask(kind.allowed, logits.device), float("-inf"))
        for hook in self.hooks:
            logits = hook(Scores(logits, first, tuple(rows), tuple(states[row] for row in rows), step))
        sampling = self.sampling.image if kind.in_image else self.sampling.text
        return sample_ids(logits, sampling, generator=self.generator) + first

    def _mask(self, allowed: tuple[IdRange, ...], device: torch.device) -> Tensor:
        """True at the ids between the lowest and the highest that may not come."""
        if allowed not in self._forbidden:
            first, last = _span(allowed)
            mask = torch.ones(last - first, dtype=torch.bool)
            for start, stop in allowed:
                mask[start - first : stop - first] = False
            self._forbidden[allowed] = mask.to(device)
        return self._forbidden[allowed]


def _guides(head: Head) -> bool:
    return "unconditional" in signature(head.sample).parameters


def _span(allowed: tuple[IdRange, ...]) -> IdRange:
    """The range from the lowest to the highest id."""
    return min(first for first, _ in allowed), max(stop for _, stop in allowed)


def _only_id(allowed: tuple[IdRange, ...]) -> int | None:
    """The id, where there is one alone."""
    return allowed[0][0] if len(allowed) == 1 and allowed[0][1] - allowed[0][0] == 1 else None
