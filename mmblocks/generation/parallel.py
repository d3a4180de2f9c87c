"""Former functions for whole grids of a model that writes codes one by one; they go with version 0.3.

Such a model now has a ``heads.MaskedCodesHead`` with ``learner`` beside its head over ids: the batch builder lays noised copies
out, ``generate`` writes whole grids with ``GridGrammar(whole=True)``, and ``sequence.sequential`` counts copies.

Shapes: B rows, L tokens, h and w codes.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.generation.autoregressive import Step, check_prompt, generate_ids, some_id_head_of
from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.id_heads import check_ids
from mmblocks.generation.options import Generation
from mmblocks.generation.reading import SpanModel
from mmblocks.heads.masked_spans import MaskedCodesHead
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens
from mmblocks.roles import AnyEmbedder, AnyHead
from mmblocks.sequence.batches import Batch, BatchBuilder
from mmblocks.sequence.masks import lower
from mmblocks.sequence.positions import sequential
from mmblocks.sequence.rows import Placed
from mmblocks.sequence.segments import NO_ID, Codes
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, Modality, TokenTable, vectors_of
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import GridFormat

_WRITER = "whole grids"
"""The name of the head that ``sample_grids`` adds."""

copy_positions = sequential
"""Former name; copies have the positions of what they copy."""


class _Image(NamedTuple):
    """Where an image's codes stand in a batch."""

    row: int
    columns: Tensor


def with_noised_copies(
    batch: Batch, hide: MaskedTokens, *, head: str, input: str = "text", generator: Generator | None = None
) -> Batch:
    """The batch with a noised copy of every image of codes that is learned, after its row; its hidden codes are learned too.

    What ``MaskedCodesHead(predicts="next", learner=...)`` lays out, for batches that are built already.

    Args:
        batch: on the host, as ``BatchBuilder`` makes it.
        hide: how many codes are hidden, and by which id.
        head: the head that learns the codes.
        input: the embedder of ids.
        generator: source of randomness.

    Raises:
        ValueError: no image of codes that is learned, or one that begins a document, where no state comes before it.
    """
    warnings.warn(
        "with_noised_copies is what a batch builder does for a MaskedCodesHead with a learner now; it goes with version 0.3",
        FutureWarning,
        2,
    )
    images = list(_images(batch))
    if not images:
        raise ValueError("the batch has no image of codes that is learned; accepted: at least one segment codes(..., target=...)")
    rows, length = batch.ids.shape
    room = [0] * rows
    for image in images:
        room[image.row] += _copied(image).numel()
    wide = length + max(room)
    table = TokenTable.padding(rows, wide)
    table.write(0, batch.table)
    ids = torch.full((rows, wide), NO_ID)
    ids[:, :length] = batch.ids
    next_span = batch.table.span.amax(dim=1).tolist()

    free = [length] * rows
    read, supervised, values = [], [], []
    for row, columns in images:
        source = _copied(_Image(row, columns))
        place = torch.arange(free[row], free[row] + len(source))
        free[row] += len(source)
        next_span[row] += 1
        for column, clean in zip(table, batch.table, strict=True):
            column[row, place] = clean[row, source]
        table.span[row, place], table.order[row, place] = next_span[row], batch.table.order[row, source[0]]
        table.noisy[row, place], table.target[row, place] = True, NO_HEAD

        hidden = hide.corrupt(batch.ids[row, columns][None], generator=generator)
        ids[row, place] = batch.ids[row, source]
        ids[row, place[columns - source[0]]] = hidden.ids[0]
        learned = columns[hidden.mask[0]]
        before = place[learned - 1 - source[0]]
        table.target[row, before] = batch.table.target[row, learned - 1]
        read.append(row * wide + place)
        supervised.append(row * wide + before)
        values.append(batch.ids[row, learned])

    def moved(placed: dict[str, Placed]) -> dict[str, Placed]:
        return {name: Placed(one.values, one.places // length * wide + one.places % length) for name, one in placed.items()}

    inputs, targets = moved(batch.inputs), moved(batch.targets)
    places = torch.cat(read)
    inputs[input] = _joined(inputs[input], ids.flatten()[places], places)
    targets[head] = _joined(targets[head], torch.cat(values), torch.cat(supervised))
    return Batch(ids, table, inputs, targets, lower(table))


def sample_grids(
    model: SpanModel,
    prompt: Batch,
    grammar: GridGrammar,
    sampler: ConfidenceSampler,
    options: Generation | None = None,
    *,
    mask_id: int,
) -> Int[Tensor, "B h w"]:
    """One grid of codes a row, in as many forward passes as the sampler has steps, after one of the prompt.

    Args:
        model: adapted by ``with_noised_copies``.
        prompt: B rows, padded on the left, that end with ``grammar.format.head(h, w)``; with guidance SB: all rows with their
            condition, then all rows of the next stream, ...
        grammar: how images are written, and their size (h, w).
        sampler: how many passes, how codes are sampled and which are kept.
        options: ``guidance``, ``generator``, ``input`` and ``head``; ids are sampled as the sampler says. Where the grammar
            names a ``head`` or an ``input`` for codes, these are used.
        mask_id: the id that hides a code; an id of the embedder that reads codes.

    Raises:
        ValueError: a prompt that is padded on the right, does not end with the image's head, or whose rows are not a multiple of
            the streams; a grammar without a fixed size; a format of more than one order of codes, or images without a head; a head
            that does not write the codes; other options.
    """
    warnings.warn(
        "sample_grids is generate with GridGrammar(whole=True) and a MaskedCodesHead now; it goes with version 0.3",
        FutureWarning,
        2,
    )
    return _sample_grids(model, prompt, grammar, sampler, options or Generation(), mask_id)


def draw_grids(
    model: SpanModel,
    prompt: Batch,
    format: GridFormat,
    sampler: ConfidenceSampler,
    *,
    size: tuple[int, int],
    mask_id: int,
    **options: Any,  # fields of Generation, which checks them
) -> Int[Tensor, "B h w"]:
    """``sample_grids`` as it was called before; it goes with version 0.3."""
    warnings.warn("draw_grids is sample_grids(model, prompt, grammar, sampler, Generation(...), mask_id=...) now", FutureWarning, 2)
    return _sample_grids(model, prompt, GridGrammar(format, size=size), sampler, Generation(**options), mask_id)


def _sample_grids(
    model: SpanModel, prompt: Batch, grammar: GridGrammar, sampler: ConfidenceSampler, options: Generation, mask_id: int
) -> Int[Tensor, "B h w"]:
    options.check_used("sample_grids", "guidance", "generator", "input", "head")
    rows = check_prompt(prompt, as_guidance(options.guidance).num_streams)
    size, codes = _check_image_opens(grammar, prompt), grammar.format.codes
    name = grammar.head or options.head
    id_head = some_id_head_of(model.outputs, name)
    check_ids(id_head, codes.start, codes.stop, name)
    own: Any = id_head  # the protocol says nothing of modules
    writer = MaskedCodesHead(
        head=own, mask_id=mask_id, first=codes.start, num_codes=codes.num_ids, predicts="next", sampler=sampler
    )
    inside = model.inputs[grammar.input or options.input]
    reads: dict[str, AnyEmbedder] = {_WRITER: _Reader(model.inputs[options.input], inside, codes, mask_id)}
    whole = GridGrammar(grammar.format, size=size, head=_WRITER, input=_WRITER, modality=grammar.modality, whole=True)
    steps = generate_ids(_Beside(model, reads, {_WRITER: writer}), prompt, whole, replace(options, head=name))
    first = next(step for step in steps if isinstance(step, Step))
    grids = [segment.grid for _, segment in sorted(first.spans.items()) if isinstance(segment, Codes)]
    return torch.stack(grids).view(rows, *size)


@dataclass(frozen=True)
class _Reader:
    """Two embedders as one: of ids around codes, and of codes and of what hides them."""

    around: AnyEmbedder
    inside: AnyEmbedder
    codes: CodeIds
    mask_id: int

    def __call__(self, ids: Tensor) -> Float[Tensor, "N D"]:
        inside = self.codes.is_code(ids) | (ids == self.mask_id)
        embeds = vectors_of(self.inside(ids[inside]))
        both = embeds.new_empty(len(ids), embeds.shape[1])
        both[inside], both[~inside] = embeds, vectors_of(self.around(ids[~inside])).to(embeds.dtype)
        return both


class _Beside:
    """A model with one input and one head more."""

    def __init__(self, model: SpanModel, inputs: dict[str, AnyEmbedder], outputs: dict[str, AnyHead]) -> None:
        self.trunk, self.mask, self._model = model.trunk, model.mask, model
        self.inputs: dict[str, AnyEmbedder] = {**{name: model.inputs[name] for name in model.inputs}, **inputs}
        self.outputs: dict[str, AnyHead] = {**{name: model.outputs[name] for name in model.outputs}, **outputs}

    def embed(self, batch: Batch) -> Float[Tensor, "B L D"]:
        return self._model.embed(batch)

    def batch_builder(self) -> BatchBuilder:
        return BatchBuilder(inputs=self.inputs, heads=self.outputs)

    def conditions(self, batch: Batch) -> Conditions | None:
        return self._model.conditions(batch)


def _check_image_opens(grammar: GridGrammar, prompt: Batch) -> tuple[int, int]:
    """The size of the image that every row of the prompt opens."""
    size = grammar.size
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"size of the grammar is {size!r}; accepted: (height, width)")
    if grammar.format.num_levels > 1:
        raise ValueError(f"the format's codes have {grammar.format.num_levels} levels; accepted: one token a place")
    if grammar.format.codes.table is not None:
        raise ValueError("the format's codes have a table; accepted: a format whose codes have ids in their own order")
    opening = grammar.format.head(*size)
    if not opening or prompt.ids[:, -len(opening) :].tolist() != [opening] * len(prompt.ids):
        raise ValueError(f"a row of the prompt does not end with {opening}, what opens an image of {size}; accepted: rows that do")
    return size


def _images(batch: Batch) -> Iterator[_Image]:
    """Images of codes that are learned."""
    table = batch.table
    is_code = (table.modality == Modality.VISION) & (table.span != NO_SPAN) & (batch.ids != NO_ID)
    for row in range(len(batch.ids)):
        columns = is_code[row].nonzero()[:, 0]
        owner = torch.stack([table.document[row, columns], table.span[row, columns]], dim=1)
        for one in owner.unique(dim=0):
            own = columns[(owner == one).all(dim=1)]
            before = int(own[0]) - 1
            if before < 0 or table.document[row, before] != one[0]:
                raise ValueError("an image begins a document, where no state comes before it; accepted: images after a token")
            if bool((table.target[row, own - 1] != NO_HEAD).all()):
                yield _Image(row, own)


def _copied(image: _Image) -> Tensor:
    """Columns of what is copied: from the token before the first code to the last code, row ends included."""
    return torch.arange(int(image.columns[0]) - 1, int(image.columns[-1]) + 1)


def _joined(placed: Placed, values: Tensor, places: Tensor) -> Placed:
    if isinstance(placed.values, list):
        raise ValueError("the input of ids was given images; accepted: ids")
    return Placed(torch.cat([placed.values, values]), torch.cat([placed.places, places]))
