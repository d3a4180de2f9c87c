"""The loop of generation: each row writes a token or a whole span a step, with a cache, grammars, and guidance in one batch.

Shapes: B rows, S streams of guidance (one without), SB forward rows: all rows of the first stream, then of the next, ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.generation.choosing import Chooser, IdHead
from mmblocks.generation.grammar import BoundedGrammar, Grammar, State, may_hold_spans
from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.options import Generation, takes_old_keywords
from mmblocks.generation.reading import IdModel, Reader
from mmblocks.generation.rereading import Rows, read_rows
from mmblocks.generation.span_writing import Shown, SpanWriter, more_tokens, most_leads, span_layouts
from mmblocks.generation.tables import TableWriter
from mmblocks.layers.categorical import VALID_LOGITS
from mmblocks.roles import AnyHead, Cache, reads_total_length
from mmblocks.sequence.batches import NOTHING, Batch
from mmblocks.sequence.pieces import NO_ID
from mmblocks.sequence.segments import Segment
from mmblocks.support.named import Named

DONE = State(mode="done")
"""Of a row that writes nothing more."""


class Step(NamedTuple):
    """One step of all rows.

    Attributes:
        ids: the id of each row; meaningless where the row was done before, ``NO_ID`` where it wrote a vector.
        before: each row's state before the step.
        states: each row's state after it.
        vectors: by row, what heads over vectors wrote.
        spans: by row, what heads of whole spans wrote.
    """

    ids: Int[Tensor, " B"]
    before: tuple[State, ...]
    states: tuple[State, ...]
    vectors: Mapping[int, Float[Tensor, " D2"]]
    spans: Mapping[int, Segment] = NOTHING


@takes_old_keywords
@torch.no_grad()
def generate_ids(
    model: IdModel,
    prompt: Batch,
    grammar: Grammar | Sequence[Grammar],
    options: Generation | None = None,
    *,
    cache: Cache | None = None,
) -> Iterator[Step | Shown]:
    """Continues every row of a left-padded prompt until all are done or ``options.max_tokens`` are written.

    Args:
        model: reads and writes ids.
        prompt: B rows; with guidance SB: all rows with their condition, then all rows of the next stream, ...
        grammar: what may follow; one for all rows, or one for each of the B.
        options: how they are continued; ``Generation()`` if None.
        cache: an empty cache for SB rows; by default one that just fits. See ``trunks.caches.kv_cache``.

    Yields:
        A ``Step`` of all rows, and where ``options.previews`` is set a ``Shown`` for each pass over a span before.

    Raises:
        ValueError: a prompt that is padded on the right, breaks the grammar, does not fit the cache, or whose rows are not a
            multiple of the streams; no ``max_tokens`` and a grammar without a limit; logits that hold NaN or infinity, or allow
            no id.
    """
    options = options or Generation()
    guide = as_guidance(options.guidance)
    rows = check_prompt(prompt, guide.num_streams)
    grammars = _one_each(grammar, rows)
    may_span = any(may_hold_spans(grammar) for grammar in grammars)
    states = tuple(
        grammar.start([i for i in row if i != NO_ID]) for grammar, row in zip(grammars, prompt.ids[:rows].tolist(), strict=True)
    )
    max_tokens = most_tokens(options, grammars, states, model)
    room = max_tokens + most_leads(model) if may_span else max_tokens - 1  # the last token is written but never read
    generator = options.generators_on(prompt.ids.device, rows)
    choose = Chooser(
        model.outputs,
        id_head_of(model.outputs, options.head),
        guidance=guide,
        sampling=options.sampling,
        hooks=options.hooks,
        generator=generator,
    )
    choose.check(grammars, states)
    kept = model.trunk.new_cache(len(prompt.ids), prompt.ids.shape[1] + room) if cache is None else cache
    _check_cache(cache, prompt, max_tokens)
    told = _total_length(prompt, guide.num_streams, max(room, max_tokens)) if reads_total_length(model.trunk) else None
    layouts = tuple(span_layouts(model).values()) if may_span else ()
    reader = Reader(model, kept, options.input, guide.num_streams, cache is None, told, layouts)
    newest = reader.read_prompt(prompt)
    tables = TableWriter(prompt.table, guide.num_streams, guide.images_only)
    write = SpanWriter(reader, tables, guide, options, may_span)
    left = [max_tokens] * rows
    for step in range(max_tokens):
        states = tuple(DONE if room < write.num_tokens(g, s) else s for g, s, room in zip(grammars, states, left, strict=True))
        if all(state.mode == "done" for state in states):
            return
        spans = yield from write(grammars, states, newest)
        # What heads of whole spans have written is chosen already.
        open_states = tuple(DONE if row in spans else state for row, state in enumerate(states))
        chosen = choose(newest.states, grammars, open_states, step)
        ids = chosen.ids.tolist()
        _check_sampled(ids, step)
        if spans:
            ids = [NO_ID if row in spans else one for row, one in enumerate(ids)]
            chosen = chosen._replace(ids=torch.tensor(ids, device=chosen.ids.device))
        before = states
        states = tuple(_advance(g, s, i) for g, s, i in zip(grammars, before, ids, strict=True))
        if options.ends is not None:
            states = tuple(_ended(options.ends, row, *one) for row, one in enumerate(zip(before, states, ids, strict=True)))
        left = [room - (spans[row].num_tokens if row in spans else 1) for row, room in enumerate(left)]
        yield Step(chosen.ids, before, states, chosen.vectors, {row: one.segment for row, one in spans.items()})
        if all(state.mode == "done" or not room for state, room in zip(states, left, strict=True)):
            return
        if spans:
            newest = read_rows(reader, tables, newest, Rows(grammars, before, states, chosen, spans))
        else:
            newest = reader.read(chosen, tables.next(grammars, before, states), grammars, before)


def _check_sampled(written: Sequence[int], step: int) -> None:
    """The host has the ids by now; on a GPU the logits have not been looked at yet."""
    broken = [row for row, next_id in enumerate(written) if next_id < NO_ID]
    if broken:
        raise ValueError(
            f"in step {step} the logits of rows {broken} hold NaN or infinity, or are all minus infinity; {VALID_LOGITS}"
        )


def _advance(grammar: Grammar, state: State, next_id: int) -> State:
    return state if state.mode == "done" else grammar.advance(state, next_id)


def _ended(ends: Callable[[int, int], bool], row: int, before: State, after: State, next_id: int) -> State:
    """The state of a row, which the caller may end after any text."""
    wrote_text = before.mode == after.mode == "text" and next_id >= 0
    return DONE._replace(num_images=after.num_images) if wrote_text and ends(row, next_id) else after


def _one_each(grammar: Grammar | Sequence[Grammar], rows: int) -> list[Grammar]:
    grammars = list(grammar) if isinstance(grammar, Sequence) else [grammar] * rows
    if len(grammars) != rows:
        raise ValueError(f"{len(grammars)} grammars for {rows} rows; accepted: one, or one for each row")
    return grammars


def most_tokens(options: Generation, grammars: Sequence[Grammar], states: Sequence[State], model: IdModel) -> int:
    """Tokens at most: as the options say, or as the longest row's grammar knows."""
    if options.max_tokens is not None:
        return options.max_tokens
    known = [
        None
        if not isinstance(grammar, BoundedGrammar) or (bound := grammar.max_tokens(state)) is None
        # Grammars count the values of a span, whose head knows how many tokens these are.
        else bound + more_tokens(model, grammar, state)
        for grammar, state in zip(grammars, states, strict=True)
    ]
    unlimited = [row for row, tokens in enumerate(known) if tokens is None]
    if unlimited:
        raise ValueError(f"max_tokens is None, and the grammar sets rows {unlimited} no limit; accepted: a number of tokens")
    return max(1, *(tokens for tokens in known if tokens is not None))


def id_head_of(outputs: Named[AnyHead], name: str | None) -> IdHead | None:
    """The head of that name, or the only one over ids; None where there is none.

    Raises:
        TypeError: a head of that name that writes no ids.
        ValueError: several heads over ids, and no name.
    """
    over_ids = {own: head for own in outputs if isinstance(head := outputs[own], IdHead)}
    if name is not None:
        if name not in over_ids:
            raise TypeError(f"head is {name!r}, a {type(outputs[name]).__name__}; accepted: one over ids, of {list(over_ids)}")
        return over_ids[name]
    if len(over_ids) > 1:
        raise ValueError(f"the model has heads {list(outputs)}: name the one that writes ids with head=")
    return next(iter(over_ids.values()), None)


def some_id_head_of(outputs: Named[AnyHead], name: str | None) -> IdHead:
    """As ``id_head_of``, where ids alone are written.

    Raises:
        ValueError: no head over ids.
    """
    head = id_head_of(outputs, name)
    if head is None:
        raise ValueError(f"the model has heads {list(outputs)}; accepted: a model with a head over ids")
    return head


def check_prompt(prompt: Batch, num_streams: int) -> int:
    """The number of rows that are continued."""
    padding = prompt.table.is_padding
    if (padding[:, -1] & ~padding.all(dim=1)).any():
        raise ValueError("prompt is padded on the right; build it with padding='left', so that rows end together")
    if padding[: prompt.ids.shape[0] // num_streams].all(dim=1).any():
        raise ValueError("a prompt has no token; accepted: at least one, but for what other streams of guidance read")
    if prompt.ids.shape[0] % num_streams:
        accepted = f"a multiple of {num_streams}: guidance needs as many unconditional as conditional rows in each stream"
        raise ValueError(f"prompt has {prompt.ids.shape[0]} rows; accepted: {accepted}")
    return prompt.ids.shape[0] // num_streams


def _total_length(prompt: Batch, num_streams: int, more: int) -> Int[Tensor, " SB"]:
    """How many tokens rows will have: as many as the longest of their stream, as if the stream were padded on its own."""
    longest = (~prompt.table.is_padding).sum(dim=1).view(num_streams, -1).amax(dim=1)
    return (longest + more).repeat_interleave(len(prompt.ids) // num_streams)


def _check_cache(cache: Cache | None, prompt: Batch, max_tokens: int) -> None:
    """Refuses a cache that is in use, or too small: the last token is written but never read."""
    if cache is None:
        return
    rows, length = prompt.ids.shape
    needed = length + max_tokens - 1
    if cache.length:
        raise ValueError(f"the cache holds {cache.length} tokens; accepted: an empty one for each generation")
    free = cache.free
    if cache.batch != rows or (free is not None and free < needed):
        fitting = f"{rows} rows (rows times streams) of {needed} tokens: a prompt of {length} and {max_tokens} more, less the last"
        raise ValueError(f"the cache has {cache.batch} rows of {free} tokens; accepted: {fitting}")
