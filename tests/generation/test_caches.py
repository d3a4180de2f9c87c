"""Caches beside the plain one: static shapes, windows; memory told beforehand; several generations at once."""

import pytest
import torch

from mmblocks import GREEDY, Decoder, GridGrammar, TextGrammar, TokenTable, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.trunks.kv_cache import cache_bytes
from mmblocks.trunks.static_cache import StaticCache
from mmblocks.trunks.windowed_cache import WindowedCache
from tests.tiny import FORMAT, TOKENIZER, VOCABULARY, tiny_model

PROMPTS = [[text("what is it? ")], [text("a")]]


def written(model, cache=None, prompts=PROMPTS, steps: int = 8) -> torch.Tensor:
    batch = model.batch_builder(TOKENIZER)(prompts, padding="left")
    found = generate_ids(model, batch, TextGrammar(VOCABULARY), max_tokens=steps, sampling=GREEDY, cache=cache)
    return torch.stack([step.ids for step in found])


def test_a_static_cache_changes_nothing() -> None:
    model = tiny_model().eval()
    assert torch.equal(written(model), written(model, StaticCache(model.trunk.new_cache(2, 30))))


def test_a_window_that_holds_everything_changes_nothing() -> None:
    model = tiny_model().eval()
    assert torch.equal(written(model), written(model, WindowedCache(model.trunk.new_cache(2, 30), sinks=0)))


@pytest.mark.parametrize("chunks", [[3, 1, 1, 1, 1, 1, 1], [3, 4, 1, 1], [9]])
def test_a_window_sees_the_sinks_and_what_is_recent(chunks) -> None:
    """The last token's state, against one forward under the mask that a window of 3 and one sink mean."""
    torch.manual_seed(0)
    trunk = Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=24).eval()
    length = sum(chunks)
    embeds, table = torch.randn(1, length, 16), TokenTable.text(1, length)
    cache = WindowedCache(trunk.new_cache(1, 4), sinks=1)
    start = 0
    with torch.no_grad():
        for count in chunks:
            part = table.slice(start, start + count)
            hidden = trunk(embeds[:, start : start + count], part, cache, mask=cache.see(part))
            start += count
        if chunks[-1] == 1:
            index = torch.arange(length)
            seen = (index[None] <= index[:, None]) & ((index[None] > index[:, None] - 3) | (index[None] == 0))
            wanted = trunk(embeds, table, mask=lambda queries, keys: seen[None])
        else:
            wanted = trunk(embeds, table)  # what is read at once is seen at once
    torch.testing.assert_close(hidden[:, -1], wanted[:, -1])
    assert (cache.held, cache.length) == (4, 9)


def test_reading_unseen_tokens_is_refused() -> None:
    trunk = Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=24)
    for make in (StaticCache, WindowedCache):
        with pytest.raises(ValueError, match=r"hand mask=cache.see\(table\)"):
            trunk(torch.randn(1, 2, 16), TokenTable.text(1, 2), make(trunk.new_cache(1, 8)))


def test_memory_is_told_beforehand() -> None:
    trunk = Decoder(dim=32, num_layers=3, num_heads=4, num_kv_heads=2, mlp_dim=24).bfloat16()
    sizes = {"num_layers": 3, "num_heads": 2, "head_dim": 8, "batch": 5, "capacity": 7, "dtype": torch.bfloat16}
    assert trunk.new_cache(5, 7).num_bytes == cache_bytes(**sizes)
    emu3 = {"num_layers": 32, "num_heads": 8, "head_dim": 128, "batch": 1, "capacity": 1, "dtype": torch.bfloat16}
    assert cache_bytes(**emu3) == 131072


def test_two_generations_run_at_once_on_one_model() -> None:
    model = tiny_model().eval()
    grammar = TextGrammar(VOCABULARY)
    batches = [model.batch_builder(TOKENIZER)([prompt], padding="left") for prompt in PROMPTS]
    runs = [generate_ids(model, batch, grammar, max_tokens=6, sampling=GREEDY) for batch in batches]
    together = [[int(step.ids) for step in steps] for steps in zip(*runs, strict=True)]
    alone = [written(model, prompts=[prompt], steps=6).flatten().tolist() for prompt in PROMPTS]
    assert together == [list(ids) for ids in zip(*alone, strict=True)]


def test_caches_that_do_not_fit_are_refused() -> None:
    model = tiny_model().eval()
    with pytest.raises(ValueError, match=r"2 rows of 5 tokens; accepted: 2 rows .* of 19 tokens"):
        written(model, model.trunk.new_cache(2, 5))
    with pytest.raises(ValueError, match="the cache has 3 rows"):
        written(model, model.trunk.new_cache(3, 50))
    used = model.trunk.new_cache(2, 60)
    written(model, used)
    with pytest.raises(ValueError, match="accepted: an empty one"):
        written(model, used)
    with pytest.raises(ValueError, match="padded on the left"):
        written(model, WindowedCache(model.trunk.new_cache(2, 30), sinks=2))


@pytest.mark.unchecked
def test_a_compiled_step_is_compiled_once() -> None:
    """One graph for the prompt, one for all steps."""
    model = tiny_model().eval()
    wanted = written(model)
    graphs = []
    model.trunk.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True)
    assert torch.equal(wanted, written(model, StaticCache(model.trunk.new_cache(2, 30))))
    assert len(graphs) == 2


def test_images_are_written_through_a_static_cache() -> None:
    model = tiny_model().eval()
    prompt = [[text([FORMAT.begin])]]
    options = {"max_tokens": 30, "sampling": GREEDY}
    (plain,) = model.generate(prompt, GridGrammar(FORMAT, size=(2, 3)), **options)
    (static,) = model.generate(prompt, GridGrammar(FORMAT, size=(2, 3)), cache=StaticCache(model.trunk.new_cache(1, 40)), **options)
    assert torch.equal(plain.segment.grid, static.segment.grid)
