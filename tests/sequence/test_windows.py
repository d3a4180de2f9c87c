"""Windows of attention: every form of mask against the sentence, pair by pair, and steps under every cache against a full pass."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from mmblocks import Decoder, TokenTable
from mmblocks.sequence.masks import Causal, Dense, Intervals, densify, intervals, lower, visible
from mmblocks.sequence.tokens import NO_SPAN, Modality
from mmblocks.sequence.windows import in_reading_order, within_window
from mmblocks.trunks import Attention, GatedMLP, Layer
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.caches.windowed_cache import WindowedCache
from tests.shared.random_tables import cuts_between_images, random_table

WIDTH = 16


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_row_ends(table: TokenTable, generator: torch.Generator) -> TokenTable:
    """Some tokens inside images that are seen causally become text, as the row ends of a grid of codes are."""
    causal = torch.zeros(table.shape, dtype=torch.bool)
    causal[:, 1:-1] = (table.order[:, 1:-1] != table.order[:, 2:]) & (table.order[:, 1:-1] != table.order[:, :-2])
    ends = causal & (table.span != NO_SPAN) & (torch.rand(table.shape, generator=generator) < 0.3)
    return table._replace(
        span=table.span.masked_fill(ends, NO_SPAN), modality=table.modality.masked_fill(ends, Modality.TEXT.value)
    )


def reach(table: TokenTable, row: int, query: int, window: int) -> int:
    """The sentence: the first key that is near enough, or where the query's image begins."""
    span, document = table.span[row, query], table.document[row, query]
    image = (table.span[row] == span) & (table.document[row] == document)
    first = int(image.nonzero()[0]) if span != NO_SPAN else query
    return min(first, query - window + 1)


def oracle(table: TokenTable, window: int) -> torch.Tensor:
    """Pair by pair, beside the rule itself."""
    seen = visible(table)
    for row in range(len(seen)):
        for query in range(seen.shape[1]):
            for key in range(reach(table, row, query, window)):
                seen[row, query, key] = False
    return seen


def narrowed(mask, window: int, keys: TokenTable, num_queries: int) -> torch.Tensor:
    """What ``within_window`` makes of a mask for the last queries of a row, as a boolean."""
    length = keys.shape[1]
    queries = keys.slice(length - num_queries, length)
    found = within_window(mask, window, queries, *in_reading_order(num_queries, length, torch.device("cpu")), keys)
    return densify(found, num_queries, length, "cpu")


def drawings() -> list[torch.Tensor]:
    """Those of the docstring: text alone, and with an image."""
    rows = re.findall(r"^ {8,}([1. ]+)$", within_window.__doc__, re.MULTILINE)
    both = [re.split(r" {3,}", row.strip()) for row in rows]
    columns = [row[0] for row in both if len(row) == 2], [row[-1] for row in both]
    return [torch.tensor([[letter == "1" for letter in row.split()] for row in column]) for column in columns]


def test_the_drawings_are_what_is_computed() -> None:
    text, mixed = TokenTable.text(1, 5), TokenTable.text(1, 7)
    mixed.span[0, 2:6], mixed.order[0, 2:6] = 0, 2
    for table, drawing in zip((text, mixed), drawings(), strict=True):
        length = table.shape[1]
        assert drawing.shape == (length, length)
        for mask in (lower(table), intervals(table), Dense(visible(table))):
            assert torch.equal(narrowed(mask, 3, table, length)[0], drawing)
        assert torch.equal(oracle(table, 3)[0], drawing)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("num_queries", [24, 7, 1])
def test_every_form_says_the_sentence(seed: int, window: int, num_queries: int) -> None:
    for table in (
        random_table(generator(seed), length=24),
        with_row_ends(random_table(generator(seed), length=24), generator(seed)),
    ):
        queries, wanted = table.slice(24 - num_queries, 24), oracle(table, window)[:, -num_queries:]
        run = intervals(queries, table)
        assert isinstance(run, Intervals)
        assert torch.equal(narrowed(run, window, table, num_queries), wanted)
        assert torch.equal(narrowed(Dense(visible(queries, table)), window, table, num_queries), wanted)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [1, 3])
def test_noised_copies_see_within_their_own_window(seed: int, window: int) -> None:
    table = random_table(generator(seed), length=24, noisy=True)
    assert torch.equal(narrowed(Dense(visible(table)), window, table, 24), oracle(table, window))


@pytest.mark.parametrize("num_queries", [9, 4, 1])
def test_plain_text_needs_two_integers_a_query(num_queries: int) -> None:
    table = TokenTable.text(2, 9)
    assert lower(table) == Causal()
    assert torch.equal(narrowed(Causal(), 4, table, num_queries), oracle(table, 4)[:, -num_queries:])
    assert torch.equal(narrowed(Dense(densify(Causal(), 9, 9, "cpu")), 4, table, 9).expand(2, -1, -1), oracle(table, 4))


def trunk_of(window: int | None, **options) -> Decoder:
    torch.manual_seed(0)
    layer = Layer(mixer=Attention(num_heads=2, window=window, **options), feed_forward=GatedMLP(hidden_dim=24))
    trunk = Decoder(dim=WIDTH, num_layers=2, layers=layer).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return trunk


def in_steps(trunk: Decoder, embeds: torch.Tensor, table: TokenTable, cache: KVCache, cuts: list[int]) -> torch.Tensor:
    steps = []
    for start, stop in pairwise(cuts):
        part = table.slice(start, stop)
        steps.append(trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part)))
    return torch.cat(steps, dim=1)


CACHES: dict[str, Callable[[KVCache], KVCache]] = {
    "plain": lambda cache: cache,
    "static": StaticCache,
    "no sinks": lambda cache: WindowedCache(cache, sinks=0),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("seed", range(2))
def test_steps_under_every_cache_equal_the_full_pass(make, window: int, seed: int) -> None:
    trunk, table = trunk_of(window), with_row_ends(random_table(generator(seed), length=24), generator(seed))
    embeds, real = torch.randn(3, 24, WIDTH), ~table.is_padding
    wanted = trunk_of(None)(embeds, table, mask=Dense(oracle(table, window)))[real]
    torch.testing.assert_close(trunk(embeds, table)[real], wanted, atol=1e-5, rtol=1e-5)
    for every in (1, 4):
        found = in_steps(trunk, embeds, table, make(trunk.new_cache(3, 30)), cuts_between_images(table, every))
        torch.testing.assert_close(found[real], wanted, atol=1e-5, rtol=1e-5)


def held_under_sinks(cuts: list[int], capacity: int, sinks: int) -> torch.Tensor:
    """Which keys of a row each token finds in a windowed cache, when it is read in these pieces."""
    place = torch.arange(cuts[-1])
    held = torch.zeros(cuts[-1], cuts[-1], dtype=torch.bool)
    for start, stop in pairwise(cuts):
        read = stop if stop == start + 1 else start  # a single token takes its place first
        held[start:stop] = (place >= read - (capacity - sinks)) | (place < sinks) | (place >= start)
    return held[None]


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("window", [2, 4, 9])
@pytest.mark.parametrize("seed", range(2))
def test_a_windowed_cache_forgets_and_layers_see_less_still(sinks: int, window: int, seed: int) -> None:
    table = with_row_ends(random_table(generator(seed), length=27), generator(seed)).slice(3, 27)  # no padding on the left
    trunk, embeds, real = trunk_of(window), torch.randn(3, 24, WIDTH), ~table.is_padding
    for every in (1, 4):
        cuts = cuts_between_images(table, every)
        mask = oracle(table, window) & (held_under_sinks(cuts, 7, sinks) | table.is_padding[:, :, None])
        wanted = trunk_of(None)(embeds, table, mask=Dense(mask))
        found = in_steps(trunk, embeds, table, WindowedCache(trunk.new_cache(3, 7), sinks=sinks), cuts)
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)


def test_long_rows_attended_span_by_span_keep_their_window() -> None:
    trunk, table = trunk_of(100, softcap=2.0), TokenTable.text(1, 1100)
    table.document[0, 700:] = 1
    table.span[0, 300:500], table.order[0, 300:500] = 0, 300
    embeds = torch.randn(1, 1100, WIDTH)
    wanted = trunk_of(None, softcap=2.0)(embeds, table, mask=Dense(oracle(table, 100)))
    torch.testing.assert_close(trunk(embeds, table), wanted, atol=1e-5, rtol=1e-5)


def test_kinds_of_layers_with_windows_of_their_own() -> None:
    """One pass lowers the mask once for each window; a local layer is unlike a global one."""
    layers = {
        name: Layer(mixer=Attention(num_heads=2, window=window), feed_forward=GatedMLP(hidden_dim=24))
        for name, window in (("local", 3), ("wide", 6), ("global", None))
    }
    torch.manual_seed(0)
    trunk = Decoder(dim=WIDTH, num_layers=3, layers=layers, layer_types=("local", "wide", "global")).eval()
    embeds, table = torch.randn(1, 20, WIDTH), TokenTable.text(1, 20)
    context = trunk.context(embeds, table)
    hidden = trunk.norm(trunk.run(embeds, context))
    assert torch.equal(hidden, trunk(embeds, table))
    for window in (3, 6):
        assert torch.equal(densify(context.attention_mask(0, window), 20, 20, "cpu"), oracle(table, window))
    assert context.attention_mask(0) == Causal()
    cache = trunk.new_cache(1, 20)
    torch.testing.assert_close(in_steps(trunk, embeds, table, cache, list(range(21))), hidden, atol=1e-5, rtol=1e-5)


def test_a_window_of_the_whole_row_is_the_causal_mask() -> None:
    """Which is how soft-capped attention hands a causal mask to flex_attention."""
    table = TokenTable.text(2, 7)
    mask = within_window(Causal(), 7, table, *in_reading_order(7, 7, torch.device("cpu")), table)
    assert isinstance(mask, Intervals) and mask.start.shape == (2, 7)
    assert torch.equal(densify(mask, 7, 7, "cpu"), densify(Causal(), 7, 7, "cpu").expand(2, -1, -1))
