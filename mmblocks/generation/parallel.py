"""Parallel decoding of a model that learned to write images code by code: a whole grid at once, refined in a few passes.

This is our own design. The idea is that of Emu3.5's discrete diffusion adaptation (DiDA, arXiv 2510.26583), of which neither code
nor weights are public, and we do not claim its numbers. It rests on the table's visibility rule alone:

- In training each image that is learned gets a noised copy after its row (``with_noised_copies``): some of its codes are hidden;
  its tokens see the clean tokens before the image, and all of each other. Clean tokens never see it, so the model's old objective
  is learned in the same pass, unchanged.
- The copy has the positions of what it copies (``copy_positions``), and a code is predicted by the state one place before it, as
  while writing code by code: the adaptation begins where the trained model is.
- ``sample_grids`` begins with all codes hidden and keeps the surest of each pass.

Shapes: B rows, L tokens, S streams of guidance, h and w codes.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from mmblocks.generation.autoregressive import check_prompt, some_id_head_of
from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.id_heads import check_ids, vocabulary_logits
from mmblocks.generation.options import Generation
from mmblocks.generation.reading import IdModel
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.following import FOLLOWING
from mmblocks.sequence.masks import changes, lower
from mmblocks.sequence.positions import sequential
from mmblocks.sequence.rows import Placed
from mmblocks.sequence.segments import NO_ID
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, PADDING, Modality, TokenTable, vectors_of
from mmblocks.vocabulary.grid_format import ANY_CODE, GridFormat


def copy_positions(table: TokenTable) -> Int[Tensor, "B L"]:
    """``sequence.positions.sequential``, and for a noised copy the positions of what it copies: it counts on from what it sees.

    A scheme for ``Decoder``; in rows without copies it is ``sequential`` itself.
    """
    clean = sequential(table._replace(document=torch.where(table.noisy, PADDING, table.document)))
    is_clean = ~table.noisy & ~table.is_padding
    far = torch.iinfo(torch.long).max
    document = table.document << 32
    sorted_keys = torch.where(is_clean, document + table.order, far).sort(dim=1).values
    seen = torch.searchsorted(sorted_keys, document + table.order) - torch.searchsorted(sorted_keys, document)
    index = torch.arange(table.shape[1], device=table.order.device).expand_as(table.order)
    begins = changes(table.noisy.long()) | changes(table.span) | changes(table.document)
    inside = index - torch.where(begins, index, 0).cummax(dim=1).values
    return torch.where(table.noisy, seen + inside, clean)


FOLLOWING[copy_positions] = FOLLOWING[sequential]  # which it is in rows of clean tokens


class _Image(NamedTuple):
    """Where an image's codes stand in a batch."""

    row: int
    columns: Tensor


def with_noised_copies(
    batch: Batch, hide: MaskedTokens, *, head: str, input: str = "text", generator: Generator | None = None
) -> Batch:
    """The batch with a noised copy of every image of codes that is learned, after its row; its hidden codes are learned too.

    Args:
        batch: on the host, as ``BatchBuilder`` makes it.
        hide: how many codes are hidden, and by which id.
        head: the head that learns the codes.
        input: the embedder of ids.
        generator: source of randomness.

    Raises:
        ValueError: no image of codes that is learned, or one that begins a document, where no state comes before it.
    """
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


@torch.no_grad()
def sample_grids(
    model: IdModel,
    prompt: Batch,
    grammar: GridGrammar,
    sampler: ConfidenceSampler,
    options: Generation | None = None,
    *,
    mask_id: int,
) -> Int[Tensor, "B h w"]:
    """One grid of codes a row, in as many forward passes as the sampler has steps.

    The first pass reads the prompt as well, which is then kept in a cache.

    Args:
        model: adapted by ``with_noised_copies``; its trunk counts by ``copy_positions``.
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
    options = options or Generation()
    options.check_used("sample_grids", "guidance", "generator", "input", "head")
    guide = as_guidance(options.guidance)
    rows = check_prompt(prompt, guide.num_streams)
    form, size = grammar.format, _check_image_opens(grammar, prompt)
    body = form.expected(torch.arange(form.length(*size)), *size)
    body = body[: int((body == ANY_CODE).nonzero().max()) + 1]
    is_code = (body == ANY_CODE).to(prompt.ids.device)
    block = torch.cat([prompt.ids[:, -1:], body.to(prompt.ids.device).repeat(len(prompt.ids), 1)], dim=1)
    structure = torch.where(block < 0, block[:, :1], block)  # in place of codes any id that the embedder of text knows
    table = _block_table(prompt.table, is_code, size)
    before = prompt.ids.shape[1] - 1
    id_head, reader = some_id_head_of(model.outputs, grammar.head or options.head), grammar.input or options.input
    check_ids(id_head, form.codes.start, form.codes.stop, grammar.head or options.head)
    cache = model.trunk.new_cache(len(prompt.ids), before + block.shape[1])

    def predict(ids: Tensor, step: int) -> Tensor:
        block[:, 1:][:, is_code] = ids.repeat(guide.num_streams, 1)
        embeds, new = vectors_of(model.inputs[options.input](block if reader == options.input else structure)), table
        if reader != options.input:
            embeds[:, 1:][:, is_code] = vectors_of(model.inputs[reader](block[:, 1:][:, is_code])).to(embeds.dtype)
        if cache.length < before:
            embeds = torch.cat([model.embed(prompt)[:, :before], embeds], dim=1)
            new = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(prompt.table.slice(0, before), table, strict=True)))
        hidden = model.trunk(embeds, new, cache, mask=model.mask)[:, -block.shape[1] : -1][:, is_code]
        cache.forget(block.shape[1])  # the grid is another one in each pass
        logits = vocabulary_logits(id_head, hidden, form.codes.start, form.codes.stop)
        streams = logits.view(guide.num_streams, rows * logits.shape[1], -1)
        return guide.combine(streams, step).view(rows, logits.shape[1], -1) if guide.num_streams > 1 else logits

    def from_codes(codes: Tensor, step: int) -> Tensor:
        """The sampler counts codes from 0, the model has them among its ids; -1 is a hidden code to the sampler."""
        return predict(torch.where(codes < 0, mask_id, codes + form.codes.start), step)

    device = prompt.ids.device
    hidden = torch.full((rows, size[0] * size[1]), -1, device=device)
    return sampler.sample(from_codes, hidden, -1, generator=options.generator_on(device)).view(rows, *size)


def draw_grids(
    model: IdModel,
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
    return sample_grids(model, prompt, GridGrammar(format, size=size), sampler, Generation(**options), mask_id=mask_id)


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


def _block_table(prompt: TokenTable, is_code: Tensor, size: tuple[int, int]) -> TokenTable:
    """The token that opens the grid, and the grid: noised tokens of one step."""
    count = len(is_code) + 1
    newest = prompt.slice(prompt.shape[1] - 1, prompt.shape[1])
    table = TokenTable(*(column.repeat(1, count, *[1] * (column.ndim - 2)) for column in newest))
    table.modality[:, 1:] = torch.where(is_code, int(Modality.VISION), int(Modality.TEXT))
    table.span[:] = prompt.span.amax(dim=1, keepdim=True) + 1
    table.noisy[:] = True
    rows, columns = torch.meshgrid(*(torch.arange(side, device=is_code.device) for side in size), indexing="ij")
    table.grid[:, 1:][:, is_code] = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return table


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
