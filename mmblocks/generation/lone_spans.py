"""How a head of whole spans writes where nothing else stands in the rows: without a prompt, and without a grammar.

Shapes: B rows, S streams of guidance, L tokens of a row.
"""

from collections.abc import Callable
from collections.abc import Generator as Coroutine
from typing import TypeVar

from torch import Tensor

from mmblocks.generation.reading import Forgetting
from mmblocks.layers.spans import Read, part_of, rows_of
from mmblocks.roles import AnyEmbedder
from mmblocks.sequence.masks import Everything
from mmblocks.sequence.spans import Pass, SpanLayout, Spans
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.named import Named

T = TypeVar("T")


def write_alone(
    writing: Coroutine[Pass, Tensor, T],
    spans: Spans,
    table: TokenTable,
    layout: SpanLayout,
    trunk: Callable[..., Tensor],
    inputs: Named[AnyEmbedder],
    cache: Forgetting | None = None,
) -> T:
    """What a head writes in rows that hold one span each, after what the cache holds of them; see ``sequence.lone_spans``.

    Args:
        writing: the coroutine that the head's ``write`` is.
        spans: of the rows of one stream.
        table: of the rows (SB, L) of all streams.
        layout: the head's, whose tokens attend to all that is there.
        trunk: what reads.
        inputs: embedders by name.
        cache: of SB rows; None where passes stand alone.
    """
    rows, length = spans.num_spans, table.shape[1]
    streams = table.shape[0] // rows
    try:
        one = next(writing)
        while True:
            part, first, stop = part_of(spans, layout, one.part, length)
            embeds, told = rows_of(inputs, [Read(part, one.reading)], rows, stop - first, streams)
            hidden = trunk(embeds, table.slice(first, stop), cache, mask=Everything(), **told)
            if cache is not None and not one.keep:
                cache.forget(stop - first)
            states = hidden.unflatten(0, (streams, rows)).flatten(1, 2)
            one = writing.send(states if part.fills(states.shape[1]) else states[:, part.places])
    except StopIteration as stopped:
        made: T = stopped.value
        return made
