"""Pieces in rows: the table of their tokens, what is read where, and what is learned where.

Shapes: B rows, L tokens of the longest row, N tokens (of one input, target or head) in all.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.sequence.pieces import NO_ID, Piece, SpanPart
from mmblocks.sequence.spans import Spans
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, TokenTable


class Placed(NamedTuple):
    """Something that belongs to certain tokens.

    Attributes:
        values: a tensor with one row per token, or a list of images (or arrays) that become the tokens together.
        places: where the tokens stand: ``row * L + column``.
    """

    values: Tensor | list[Tensor]
    places: Int[Tensor, " N"]

    def to(self, device: torch.device | str) -> "Placed":
        """The same on another device."""
        values = self.values
        moved = [value.to(device) for value in values] if isinstance(values, list) else values.to(device)
        return Placed(moved, self.places.to(device))


class Pooled(NamedTuple):
    """Labels of several tokens each.

    Attributes:
        values: one row a label.
        places: where the tokens stand: ``row * L + column``.
        of: which label each token belongs to.
    """

    values: Tensor
    places: Int[Tensor, " N"]
    of: Int[Tensor, " N"]

    def to(self, device: torch.device | str) -> "Pooled":
        """The same on another device."""
        return Pooled(*(tensor.to(device) for tensor in self))


class Laid(NamedTuple):
    """A piece, and where it stands: its first token's place, and what the table says of the piece as a whole.

    ``before`` is the place of the token that its first one is predicted by, which is no noised copy; -1 where there is none.
    """

    piece: Piece
    place: int
    document: int
    order: int
    span: int
    is_first: bool
    before: int


def lay_out(documents: list[list[Piece]], place: int) -> list[Laid]:
    """The pieces of one row, from ``place`` on."""
    laid = []
    for document, pieces in enumerate(documents):
        order, span, before = 0, 0, -1
        for index, piece in enumerate(pieces):
            laid.append(Laid(piece, place, document, order, span, index == 0, before))
            # A clean copy goes on from the last step of what it copies, and is the same span.
            order += piece.num_steps - (not piece.stays)
            span += piece.stays and bool(piece.in_span.any())
            place += piece.num_tokens
            before = place - 1 if piece.stays and piece.num_tokens else before
    return laid


def fill_rows(documents: list[list[Piece]], length: int) -> list[list[list[Piece]]]:
    """Whole documents in the order given; a new row where the next one no longer fits."""
    rows: list[list[list[Piece]]] = []
    free = 0
    for index, document in enumerate(documents):
        needed = sum(piece.num_tokens for piece in document)
        if needed > length:
            raise ValueError(f"sample {index} has {needed} tokens; pack accepts at most {length}")
        if needed > free:
            rows.append([])
            free = length
        rows[-1].append(document)
        free -= needed
    return rows


def table_of(
    laid: list[Laid], num_rows: int, length: int, heads: tuple[str, ...]
) -> tuple[Tensor, TokenTable, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Ids (B, L), the table, and by piece the places of its tokens, of those that predict them, and which of them are learned."""
    pieces = [entry.piece for entry in laid]
    sizes = [piece.num_tokens for piece in pieces]
    counts = torch.tensor(sizes)
    within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)

    def per_token(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(counts)

    place = per_token([entry.place for entry in laid]) + within
    table = TokenTable.padding(num_rows, length)
    ids = torch.full((num_rows, length), NO_ID)
    steps = torch.where(per_token([piece.one_step for piece in pieces]), 0, within)
    if any(piece.span is not None for piece in pieces):
        steps = torch.cat(
            [own if piece.span is None else piece.span.steps for piece, own in zip(pieces, steps.split(sizes), strict=True)]
        )
        table.noisy.view(-1)[place] = per_token([piece.is_noisy for piece in pieces]).bool()
    in_span = torch.cat([piece.in_span for piece in pieces])
    for column, values in (
        (table.modality, torch.cat([piece.modality for piece in pieces])),
        (table.document, per_token([entry.document for entry in laid])),
        (table.span, torch.where(in_span, per_token([entry.span for entry in laid]), NO_SPAN)),
        (table.order, per_token([entry.order for entry in laid]) + steps),
        (ids, torch.cat([piece.ids for piece in pieces])),
    ):
        column.view(-1)[place] = values
    table.grid.view(-1, 3)[place] = torch.cat([piece.grid for piece in pieces])

    # A token is predicted one place earlier, noised copies aside; a document's first token has no earlier one.
    before = torch.where(within == 0, per_token([entry.before for entry in laid]), place - 1)
    learned = torch.cat([piece.learned for piece in pieces]) & (before >= 0)
    head = per_token([NO_HEAD if piece.target is None else heads.index(piece.target) for piece in pieces])
    supervised = learned & (head != NO_HEAD)
    table.target.view(-1)[before[supervised]] = head[supervised]
    return ids, table, place.split(sizes), before.split(sizes), learned.split(sizes)


def placed_inputs(laid: list[Laid], places: tuple[Tensor, ...]) -> dict[str, Placed]:
    """By input, what it reads and where that stands."""
    gathered: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for (piece, *_), place in zip(laid, places, strict=True):
        if piece.payload is not None:
            values, own = gathered.setdefault(piece.input, ([], []))
            values.append(piece.payload)
            own.append(place)
    return {
        name: Placed(values if values[0].ndim >= 3 else torch.cat(values), torch.cat(own))  # images are (3, H, W)
        for name, (values, own) in gathered.items()
    }


def placed_labels(
    laid: list[Laid], before: tuple[Tensor, ...], learned: tuple[Tensor, ...]
) -> tuple[dict[str, Placed], dict[str, Tensor], dict[str, Pooled]]:
    """By head, labels with their places; their weights, where they differ; and labels of means."""
    gathered: dict[str, tuple[list[Tensor], list[Tensor], list[float], list[int]]] = {}
    means: dict[str, list[tuple[Tensor, Tensor]]] = {}
    begins = 0
    for entry, predicted_by, chosen in zip(laid, before, learned, strict=True):
        piece = entry.piece
        begins = entry.place if entry.is_first else begins
        if piece.target is None or piece.values is None or piece.span is not None:
            continue
        if piece.pooled:
            means.setdefault(piece.target, []).append((piece.values, torch.arange(begins, entry.place)))
            continue
        values, own, weights, counts = gathered.setdefault(piece.target, ([], [], [], []))
        values.append(piece.values if piece.is_label else piece.values[chosen])
        own.append(torch.tensor([entry.place - 1]) if piece.is_label else predicted_by[chosen])
        weights.append(piece.weight)
        counts.append(len(own[-1]))
    targets = {name: Placed(torch.cat(values), torch.cat(own)) for name, (values, own, _, _) in gathered.items()}
    factors = {
        name: torch.tensor(weights).repeat_interleave(torch.tensor(counts))
        for name, (_, _, weights, counts) in gathered.items()
        if any(weight != 1 for weight in weights)
    }
    pooled = {name: _pooled(entries) for name, entries in means.items()}
    return targets, factors, pooled


def _pooled(entries: list[tuple[Tensor, Tensor]]) -> Pooled:
    of = torch.arange(len(entries)).repeat_interleave(torch.tensor([len(own) for _, own in entries]))
    return Pooled(torch.cat([value for value, _ in entries]), torch.cat([own for _, own in entries]), of)


def placed_spans(laid: list[Laid], *, copies: bool) -> dict[str, Spans]:
    """By head of whole spans, those that it learns, or the clean copies."""
    gathered: dict[str, list[tuple[Laid, SpanPart]]] = {}
    for entry in laid:
        span = entry.piece.span
        if span is not None and span.copies == copies:
            gathered.setdefault(str(entry.piece.target), []).append((entry, span))
    return {name: _spans(name, entries) for name, entries in gathered.items()}


def _spans(name: str, entries: list[tuple[Laid, SpanPart]]) -> Spans:
    layout = entries[0][1].layout
    inputs = {entry.piece.input for entry, _ in entries}
    if len(inputs) > 1:
        raise ValueError(f"spans of head {name!r} have inputs {sorted(inputs)}; accepted: one for all spans of a head in a batch")
    says = {frozenset(span.given) for _, span in entries}
    if len(says) > 1:
        raise ValueError(f"spans of head {name!r} are given {[sorted(one) for one in says]}; accepted: the same for all of a batch")
    lead = layout.lead
    counts = [entry.piece.num_tokens - lead for entry, _ in entries]
    places = torch.cat(
        [torch.arange(entry.place + lead, entry.place + lead + count) for (entry, _), count in zip(entries, counts, strict=True)]
    )
    states = places
    if layout.predicts == "next" and not entries[0][1].copies:  # nothing predicts a clean copy
        if not lead and not layout.opening and any(entry.is_first for entry, _ in entries):
            raise ValueError(f"a span of head {name!r} begins a sample, where no state comes before it; accepted: after a token")
        states = (places - 1).clamp(min=0)  # of an opening, which is given, that of another token
    values = [span.values for _, span in entries]
    weights = [entry.piece.weight for entry, _ in entries]
    return Spans(
        input=entries[0][0].piece.input,
        sizes=tuple(span.size for _, span in entries),
        counts=tuple(counts),
        grid=torch.cat([entry.piece.grid[lead:] for entry, _ in entries]),
        places=places,
        leads=torch.cat([torch.arange(entry.place, entry.place + lead) for entry, _ in entries]),
        states=states,
        values=values if layout.whole or layout.num_tokens is not None else torch.cat(values),
        given={said: torch.stack([span.given[said] for _, span in entries]) for said in entries[0][1].given},
        weight=torch.tensor(weights) if any(weight != 1 for weight in weights) else None,
        patch=layout.patch,
        ids=_ids_of([span.ids for _, span in entries], counts),
    )


def _ids_of(ids: list[Tensor | None], counts: list[int]) -> Tensor | None:
    """Which ids may stand at each token of some spans; any where no format says so."""
    if all(own is None for own in ids):
        return None
    everything = torch.tensor([[0, torch.iinfo(torch.long).max]])
    return torch.cat([everything.expand(count, 2) if own is None else own for own, count in zip(ids, counts, strict=True)])
