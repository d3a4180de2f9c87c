"""Caches beside the plain one: static shapes, windows; memory told beforehand; several generations at once."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmblocks import GREEDY, Decoder, Generation, GridGrammar, LMHead, MultimodalModel, TextEmbedding, TextGrammar, TokenTable, text
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.heads import SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.ops import cuda_graphs
from mmblocks.trunks import Attention, ChameleonTrunk, GatedMLP, Layer, LlamaGenTrunk, MoEDecoder, NEOTrunk, RoutedDecoder
from mmblocks.trunks.caches import static_cache
from mmblocks.trunks.caches.kv_cache import cache_bytes
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.caches.windowed_cache import WindowedCache
from tests.shared.own_parts import Average
from tests.shared.tiny import FORMAT, TOKENIZER, VOCABULARY, WIDTH, tiny_model

PROMPTS = [[text("what is it? ")], [text("a")]]


def steps_of(model, cache=None, prompts=PROMPTS, steps: int = 8):
    batch = model.batch_builder(TOKENIZER)(prompts, padding="left").to(model.trunk.norm.weight.device)
    return generate_ids(model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=steps, sampling=GREEDY), cache=cache)


def written(*args, **options) -> torch.Tensor:
    return torch.stack([step.ids for step in steps_of(*args, **options)])


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
            hidden = trunk(embeds[:, start : start + count], part, cache, mask=cache.mask_for(part))
            start += count
        if chunks[-1] == 1:
            index = torch.arange(length)
            seen = (index[None] <= index[:, None]) & ((index[None] > index[:, None] - 3) | (index[None] == 0))
            wanted = trunk(embeds, table, mask=lambda queries, keys: seen[None])
        else:
            wanted = trunk(embeds, table)  # what is read at once is seen at once
    torch.testing.assert_close(hidden[:, -1], wanted[:, -1])
    assert (cache.held, cache.length) == (4, 9)


def test_reading_tokens_without_their_mask_is_refused() -> None:
    trunk = Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=24)
    for make in (StaticCache, WindowedCache):
        with pytest.raises(ValueError, match=r"hand mask=cache.mask_for\(table\)"):
            trunk(torch.randn(1, 2, 16), TokenTable.text(1, 2), make(trunk.new_cache(1, 8)))


@pytest.mark.parametrize("make", [lambda cache: cache, StaticCache])
def test_what_is_taken_back_was_never_read(make) -> None:
    torch.manual_seed(0)
    trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=24).eval()
    embeds, table = torch.randn(1, 9, 16), TokenTable.text(1, 9)
    cache = make(trunk.new_cache(1, 9))

    def read(start: int, stop: int) -> torch.Tensor:
        part = table.slice(start, stop)
        return trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part))

    read(0, 4)
    first = read(4, 7)
    cache.forget(3)
    assert cache.length == 4
    torch.testing.assert_close(read(4, 7), first)
    cache.forget(2)
    torch.testing.assert_close(read(5, 9), trunk(embeds, table)[:, 5:])
    with pytest.raises(ValueError, match="count is 10; accepted: 0 to 9, the tokens read"):
        cache.forget(10)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize(("length", "span"), [(3, 2), (3, 4), (6, 3), (9, 1), (9, 3), (9, 7), (20, 8), (20, 1)])
@torch.no_grad()
def test_a_window_is_as_it_was_after_passes_that_are_taken_back(length: int, span: int, noisy: bool) -> None:
    """Whether the window was full before, or was not; and each pass is that of a window that never read the others."""
    torch.manual_seed(0)
    trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=24).eval()
    embeds, table = torch.randn(2, length + 6, 16), TokenTable.text(2, length + 6)

    def read(cache: WindowedCache, start: int, stop: int) -> torch.Tensor:
        part = table.slice(start, stop)
        return trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part))

    def read_span(cache: WindowedCache, values: torch.Tensor) -> torch.Tensor:
        part = TokenTable.text(2, span)
        part = part._replace(noisy=part.noisy | noisy, span=torch.zeros_like(part.span), order=torch.full_like(part.order, length))
        return trunk(values, part, cache, mask=cache.mask_for(part))

    def after_prompt() -> WindowedCache:
        cache = WindowedCache(trunk.new_cache(2, 7), sinks=2)
        read(cache, 0, 3)
        for place in range(3, length):
            read(cache, place, place + 1)
        return cache

    cache, untouched = after_prompt(), after_prompt()
    for _ in range(3):
        values = torch.randn(2, span, 16)
        torch.testing.assert_close(read_span(cache, values), read_span(after_prompt(), values), atol=1e-5, rtol=1e-5)
        cache.forget(span)
        assert (cache.length, cache.held) == (untouched.length, untouched.held)
        assert all(torch.equal(found, wanted) for found, wanted in zip(cache.table, untouched.table, strict=True))
    cache.forget(0)
    with pytest.raises(ValueError, match="count is 1; accepted: 0 or 0, the tokens read last"):
        cache.forget(1)
    for start, stop in ((length, length + 1), (length + 1, length + 4), (length + 4, length + 6)):
        torch.testing.assert_close(read(cache, start, stop), read(untouched, start, stop), atol=1e-5, rtol=1e-5)


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
    runs = [generate_ids(model, batch, grammar, Generation(max_tokens=6, sampling=GREEDY)) for batch in batches]
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


def windowed(*, dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> Decoder:
    mixer = Attention(num_heads=num_heads, num_kv_heads=num_kv_heads, window=4, softcap=5.0)
    return Decoder(dim=dim, num_layers=num_layers, layers=Layer(mixer=mixer, feed_forward=GatedMLP(hidden_dim=mlp_dim)))


def recurrent(*, dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> Decoder:
    """A mixer of one's own beside attention."""
    mixers = {"own": Average(), "usual": Attention(num_heads=num_heads, num_kv_heads=num_kv_heads)}
    layers = {name: Layer(mixer=mixer, feed_forward=GatedMLP(hidden_dim=mlp_dim)) for name, mixer in mixers.items()}
    return Decoder(dim=dim, num_layers=num_layers, layers=layers, layer_types=("own", "usual"))


TRUNKS = {
    "decoder": (Decoder, {"qk_norm": True}),
    "dynamic": (Decoder, {"rope_scaling": {"type": "dynamic", "factor": 2.0, "max_position": 4}}),
    "yarn": (Decoder, {"rope_scaling": {"type": "yarn", "factor": 2.0, "max_position": 4}}),
    "chameleon": (ChameleonTrunk, {}),
    "neo": (NEOTrunk, {}),
    "llamagen": (LlamaGenTrunk, {}),
    "windows": (windowed, {}),
    "a recurrence": (recurrent, {}),
}
SIZES = {"dim": WIDTH, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48}


def tensors_of(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class OnOneDevice(TorchDispatchMode):
    """Refuses copies between host and device, which wait for each other. A single number from the host travels with a launch."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given, made = tensors_of((args, kwargs)), tensors_of(result)
        sources, results = {tensor.device.type for tensor in given}, {tensor.device.type for tensor in made}
        from_host = [tensor for tensor in given if tensor.device.type == "cpu"]
        if len(sources) > 1:
            copied = operation is torch.ops.aten.copy_.default or any(tensor.ndim for tensor in from_host)
        else:
            copied = bool(sources) and bool(results - sources)
        assert not copied, operation
        return result


class Tape(TorchDispatchMode):
    """What a CUDA graph keeps: each operation on the very tensors it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
        is_view = all(tensor.untyped_storage().data_ptr() in memory for tensor in tensors_of(result))
        if operation._schema.is_mutable or not is_view:
            self.calls.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for operation, args, kwargs, result in self.calls:
                for kept, new in zip(tensors_of(result), tensors_of(operation(*args, **kwargs)), strict=True):
                    if kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)

    @classmethod
    def capture(cls, function, device, pool):
        with cls() as tape:
            result = function()
        return tape.replay, result


def static_step(cls, **options):
    """A function that takes one step on a pretended CUDA device, which knows shapes and no values."""
    trunk = cls(**SIZES, **options).eval()
    cache = StaticCache(trunk.new_cache(2, 30))
    for length in (3, 1):
        table, embeds = TokenTable.text(2, length).to("cuda"), torch.randn(2, length, WIDTH)
        mask = cache.mask_for(table)
        if length > 1:
            trunk(embeds, table, cache, mask=mask)
    return lambda: trunk(embeds, table, cache, mask=mask)


@pytest.mark.parametrize("name", TRUNKS)
def test_a_step_never_waits_for_the_device(name) -> None:
    cls, options = TRUNKS[name]
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        step = static_step(cls, **options)
        with OnOneDevice():
            step()


@pytest.mark.parametrize(
    "wait",
    [
        lambda device: torch.tensor([1.0, 2.0], device=device),
        lambda device: torch.tensor(1.0, device=device),
        lambda device: torch.zeros(2, device=device).copy_(torch.tensor(1.0)),
        lambda device: torch.zeros(2, device=device).cpu(),
        lambda device: torch.zeros(2, device=device).sum().to("cpu"),
        lambda device: torch.zeros(2, device=device) + torch.zeros(2),
        lambda device: int(torch.zeros(1, device=device)),
    ],
)
def test_what_waits_for_the_device_is_noticed(wait) -> None:
    with FakeTensorMode(), pytest.raises((AssertionError, RuntimeError)), OnOneDevice():  # the pretended device refuses some itself
        wait(torch.device("cuda"))


@pytest.mark.parametrize("name", TRUNKS)
def test_a_step_can_be_replayed(name, monkeypatch) -> None:
    cls, options = TRUNKS[name]
    torch.manual_seed(0)
    model = tiny_model(trunk=cls(**SIZES, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    monkeypatch.setattr(cuda_graphs, "capture", Tape.capture)
    monkeypatch.setattr(static_cache, "new_pool", lambda: (0, 0))
    cache = StaticCache(model.trunk.new_cache(2, 30))
    cache.cuda_graphs = True
    assert torch.equal(written(model), written(model, cache))
    assert len(written(model).unique()) > 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TRUNKS)
def test_cuda_graphs_change_nothing(name) -> None:
    cls, options = TRUNKS[name]
    torch.manual_seed(0)
    model = tiny_model(trunk=cls(**SIZES, **options)).eval().cuda()
    caches = [StaticCache(model.trunk.new_cache(2, 30), cuda_graphs=graphs) for graphs in (True, True, False)]
    first, second, plain = (torch.stack([step.ids for step in steps_of(model, cache)]) for cache in caches)
    assert torch.equal(first, plain) and torch.equal(second, plain)


def test_cuda_graphs_are_refused_elsewhere() -> None:
    with pytest.raises(ValueError, match="cuda_graphs is True and the cache is on cpu; accepted: a cache on CUDA"):
        StaticCache(tiny_model().trunk.new_cache(1, 8), cuda_graphs=True)
    for cls, options in ((RoutedDecoder, {}), (MoEDecoder, {"num_experts": 2}), (Decoder, {"rope_sections": (1, 1, 2)})):
        model = tiny_model(trunk=cls(**SIZES, **options))
        cache = StaticCache(model.trunk.new_cache(2, 30))
        cache.cuda_graphs = True
        with pytest.raises(TypeError, match="cannot be recorded as CUDA graphs; accepted: one whose static_step"):
            written(model, cache)


def test_images_are_written_through_a_static_cache() -> None:
    model = tiny_model().eval()
    prompt = [[text([FORMAT.begin])]]
    grammar, options = GridGrammar(FORMAT, size=(2, 3)), Generation(max_tokens=30, sampling=GREEDY)
    (plain,) = model.generate(prompt, grammar, options)
    (static,) = model.generate(prompt, grammar, options, cache=StaticCache(model.trunk.new_cache(1, 40)))
    assert torch.equal(plain.segment.grid, static.segment.grid)


@torch.no_grad()
def test_an_image_is_written_in_passes_through_a_window() -> None:
    """A window with room for everything changes nothing; a full one goes on after the image with what it held before."""
    torch.manual_seed(0)
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=3)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=16), "latents": torch.nn.Linear(4, 16)},
        trunk=Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=24),
        outputs={"text": LMHead(dim=16, vocab_size=16), "latents": SpanDenoisingHead(dim=16, channels=4, sampler=sampler)},
    ).eval()
    block = VectorBlock(begin=7, end=8, size=(2, 2), head="latents", input="latents", whole=True)
    grammar, prompt = VectorGrammar(block, vocab_size=16, stop=(0,)), [[text([1, 2, 3, 4, 5, 6, 7])]]
    options = Generation(max_tokens=9, sampling=GREEDY, generator=0)

    def made(cache) -> list:
        return [segment for _, segment in model.generate(prompt, grammar, options, cache=cache)]

    plain, wide, narrow = made(None), *(made(WindowedCache(model.trunk.new_cache(1, room), sinks=2)) for room in (30, 6))
    torch.testing.assert_close(plain[0].values, wide[0].values, atol=1e-5, rtol=1e-5)
    assert plain[1].content == wide[1].content
    assert not torch.allclose(plain[0].values, narrow[0].values, atol=1e-4)
