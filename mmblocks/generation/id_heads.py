"""Heads over ids as generation needs them, and which of the vocabulary's ids each of them writes.

Shapes: N rows, D width, V ids.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mmblocks.generation.grammar import IdRange
from mmblocks.roles import AnyHead
from mmblocks.support.named import Named


@runtime_checkable
class IdHead(Protocol):
    """A head over ids, as the loop needs it.

    One with an attribute ``first`` writes the vocabulary's ids ``first`` to ``first + vocab_size - 1``, any other those from 0 on.
    """

    vocab_size: int

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(N, D) -> float32 logits of ``start:stop`` of the head's own ids, counted from 0."""
        ...


@runtime_checkable
class LaterIds(Protocol):
    """A head over ids whose own id 0 is another one of the vocabulary; see ``heads.ModalityLMHead``."""

    first: int


def ids_of(head: IdHead) -> IdRange:
    """The vocabulary's ids that a head writes."""
    first = head.first if isinstance(head, LaterIds) and isinstance(head.first, int) else 0
    return first, first + head.vocab_size


def check_ids(head: IdHead, first: int, stop: int, name: str | None = None) -> None:
    """Refuses ids that a head does not write.

    Raises:
        ValueError: an id outside of its range.
    """
    lowest, end = ids_of(head)
    if first < lowest or stop > end:
        called = type(head).__name__ if name is None else repr(name)
        raise ValueError(f"the grammar allows ids {first} to {stop - 1}; the head {called} writes ids {lowest} to {end - 1}")


def vocabulary_logits(head: IdHead, hidden: Float[Tensor, "*N D"], first: int, stop: int) -> Float[Tensor, "*N V"]:
    """Logits of the vocabulary's ids ``first:stop``.

    Raises:
        ValueError: an id that the head does not write.
    """
    check_ids(head, first, stop)
    before = ids_of(head)[0]
    return head.logits(hidden, first - before, stop - before)


def id_head(heads: Named[AnyHead], name: str) -> IdHead:
    """The head of that name.

    Raises:
        ValueError: no such head.
        TypeError: one that writes no ids.
    """
    if name not in list(heads):
        raise ValueError(f"the grammar's ids are written by head {name!r}; the model's heads: {list(heads)}")
    head = heads[name]
    if not isinstance(head, IdHead):
        over_ids = [own for own in heads if isinstance(heads[own], IdHead)]
        raise TypeError(f"the grammar's ids are written by head {name!r}, a {type(head).__name__}; accepted: of {over_ids}")
    return head
