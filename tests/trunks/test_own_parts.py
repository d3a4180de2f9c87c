"""Parts of one's own in a decoder: a recurrence and a feed-forward part as a user writes them, alone and among others."""

import json
from itertools import pairwise

import pytest
import torch

from mmblocks import GREEDY, Block, Decoder, Generation, TextGrammar, TokenTable, text
from mmblocks.trunks import Attention, GatedMLP, Layer, Linear, MixtureOfExperts, Norm
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.caches.windowed_cache import WindowedCache
from tests.shared.own_parts import Average, AverageModule, Squares, SquaresModule
from tests.shared.random_tables import cuts_between_images, random_table
from tests.shared.tiny import TOKENIZER, VOCABULARY, tiny_model

WIDTH = 16


OWN = Layer(mixer=Average(), feed_forward=Squares(hidden_dim=24))
USUAL = Layer(mixer=Attention(num_heads=2), feed_forward=GatedMLP(hidden_dim=24))
EXPERTS = ("text", "vision")
ROUTED = Linear(experts=EXPERTS)
KINDS = {
    "own": {"layers": OWN},
    "own mixer": {"layers": Layer(mixer=Average(), feed_forward=GatedMLP(hidden_dim=24))},
    "mixed": {"layers": {"own": OWN, "usual": USUAL}, "layer_types": ("own", "usual", "own")},
    "among experts": {
        "layers": {
            "own": Layer(mixer=Average(), feed_forward=Squares(hidden_dim=24), norm=Norm(experts=EXPERTS)),
            "usual": Layer(mixer=Attention(num_heads=2, linear=ROUTED), feed_forward=GatedMLP(hidden_dim=24, linear=ROUTED)),
            "mixture": Layer(mixer=Average(), feed_forward=MixtureOfExperts(hidden_dim=12, num_experts=3)),
        },
        "layer_types": ("own", "usual", "mixture"),
    },
}


def trunk_of(layers=OWN, num_layers: int = 3, **options) -> Decoder:
    torch.manual_seed(0)
    trunk = Decoder(dim=WIDTH, num_layers=num_layers, layers=layers, **options).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return trunk


def written_out(mixer: AverageModule, x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    """The recurrence by its definition: token by token, document by document; zeros at padding."""
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for document in set(table.document[row].tolist()) - {-1}:
            average = torch.zeros(WIDTH)
            for token in (table.document[row] == document).nonzero().flatten().tolist():
                average = (1 - mixer.rate) * average + mixer.rate * mixer.value(x[row, token])
                out[row, token] = mixer.output(mixer.gate(x[row, token]).sigmoid() * average)
    return out


def table_with_gaps(seed: int, length: int = 24) -> TokenTable:
    """Packed documents, padded on either side; in the last row padding stands inside documents, as in guided generation."""
    generator = torch.Generator().manual_seed(seed)
    table = random_table(generator, length=length)
    table.document[-1, torch.rand(length, generator=generator) < 0.3] = -1
    return table


@pytest.mark.parametrize("seed", range(4))
def test_in_a_decoder_it_is_the_loop_written_out(seed: int) -> None:
    trunk, table = trunk_of(num_layers=1), table_with_gaps(seed)
    x, real = torch.randn(3, 24, WIDTH), ~table.is_padding
    layer = trunk.layers[0]
    mixed = x + written_out(layer.attention, layer.attention_norm(x), table)
    normed = layer.mlp_norm(mixed)
    wanted = trunk.norm(mixed + layer.mlp.down(layer.mlp.up(normed).clamp(min=0) ** 2))
    torch.testing.assert_close(trunk(x, table)[real], wanted[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_padding_and_other_documents_change_nothing(options, seed: int) -> None:
    trunk, table = trunk_of(**options), random_table(torch.Generator().manual_seed(seed), length=24)
    embeds = torch.randn(3, 24, WIDTH)
    together = trunk(embeds, table)
    for row in range(3):
        for document in set(table.document[row].tolist()) - {-1}:
            here = (table.document[row] == document).nonzero().flatten()
            alone = TokenTable(*(column[row : row + 1, here] for column in table))
            separate = trunk(embeds[row : row + 1, here], alone)
            torch.testing.assert_close(together[row, here], separate[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["plain", "static", "windowed"])
def test_cached_steps_equal_the_full_pass(options, kind: str) -> None:
    trunk, table = trunk_of(**options), random_table(torch.Generator().manual_seed(5), length=24)
    embeds, real = torch.randn(3, 24, WIDTH), ~table.is_padding
    full = trunk(embeds, table)
    for every in (1, 3, 7):
        cache = trunk.new_cache(3, 30)
        cache = {"plain": lambda c: c, "static": StaticCache, "windowed": lambda c: WindowedCache(c, sinks=0)}[kind](cache)
        steps = []
        for start, stop in pairwise(cuts_between_images(table, every)):
            part = table.slice(start, stop)
            steps.append(trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part)))
        torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cuts", [range(25), (0, 1, 11, 12, 24), (0, 10, 24)])
def test_a_recurrence_may_be_cut_anywhere(seed: int, cuts) -> None:
    trunk, table = trunk_of(), table_with_gaps(seed)
    embeds, real, cache = torch.randn(3, 24, WIDTH), ~table.is_padding, trunk.new_cache(3, 24)
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], trunk(embeds, table)[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda cache: cache, StaticCache])
def test_rows_of_a_cache_have_states_of_their_own(make) -> None:
    trunk, embeds, table = trunk_of(**KINDS["mixed"]), torch.randn(3, 6, WIDTH), TokenTable.text(3, 6)
    full, cache, index = trunk(embeds, table), make(trunk.new_cache(3, 8)), torch.tensor([2, 0, 2])

    def step(cache, rows, first: int, last: int) -> torch.Tensor:
        part = table.slice(first, last)
        return trunk(embeds[rows, first:last], part, cache, mask=cache.mask_for(part))

    step(cache, [0, 1, 2], 0, 5)
    chosen = cache.rows(index)
    torch.testing.assert_close(step(chosen, index, 5, 6), full[index, 5:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(cache, [0, 1, 2], 5, 6), full[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_it_trains_and_activation_checkpointing_changes_no_gradient(options) -> None:
    trunk, table = trunk_of(**options).train(), random_table(torch.Generator().manual_seed(2), length=24)
    embeds, wanted, real = torch.randn(3, 24, WIDTH), torch.randn(3, 24, WIDTH), ~table.is_padding

    def loss() -> torch.Tensor:
        return (trunk(embeds, table) - wanted)[real].square().mean()

    gradients = []
    for trunk.checkpoint_activations in (False, True):
        gradients.append(torch.autograd.grad(loss(), list(trunk.parameters())))
    for (name, _), plain, recomputed in zip(trunk.named_parameters(), *gradients, strict=True):
        assert plain.abs().sum() > 0, name
        torch.testing.assert_close(recomputed, plain)
    optimizer, first = torch.optim.Adam(trunk.parameters(), lr=0.02), loss().item()
    for _ in range(15):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * first


@pytest.mark.parametrize("make", [None, StaticCache])
def test_a_model_writes_with_it(make) -> None:
    """As reading all anew in each step would have it; rows of one batch are what they are alone."""
    torch.manual_seed(0)
    model = tiny_model(trunk=Decoder(dim=32, num_layers=3, layers=KINDS["mixed"]["layers"], layer_types=("own", "usual", "own")))
    for parameter in model.eval().parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    prompts = [TOKENIZER.encode("what is it? "), TOKENIZER.encode("a")]
    cache = None if make is None else make(model.trunk.new_cache(2, 30))
    samples = [[text(prompt)] for prompt in prompts]
    for row, written in model.generate(
        samples, TextGrammar(VOCABULARY), options=Generation(max_tokens=8, sampling=GREEDY), cache=cache
    ):
        read = list(prompts[row])
        for next_id in written.content:
            hidden = model.trunk(model.inputs["text"](torch.tensor([read])), TokenTable.text(1, len(read)))
            assert model.outputs["lm"].logits(hidden[:, -1]).argmax().item() == next_id
            read.append(next_id)
        assert len(set(written.content)) > 2
        prompts[row] = None
    assert prompts == [None, None]


def test_no_token_is_taken_out_of_a_state() -> None:
    trunk = trunk_of(**KINDS["mixed"])
    cache = trunk.new_cache(1, 4)
    trunk(torch.randn(1, 3, WIDTH), TokenTable.text(1, 3), cache)
    with pytest.raises(ValueError, match=r"layers \[0, 2\] keep a state, out of which no token can be taken"):
        cache.forget(1)


@pytest.mark.parametrize("make", [lambda cache: cache, StaticCache])
def test_a_state_keeps_its_shape_and_dtype(make) -> None:
    cache = make(trunk_of(**KINDS["mixed"]).new_cache(2, 4))
    cache.keep_state(0, torch.ones(2, WIDTH, dtype=torch.bfloat16))
    assert torch.equal(cache.states[0], torch.ones(2, WIDTH)) and cache.states[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"the state of layer 0 has shape \(1, 16\); accepted: \(2, 16\)"):
        cache.keep_state(0, torch.ones(1, WIDTH))
    with pytest.raises(ValueError, match=r"the state of layer 1 has shape \(2, 16\); accepted: none, as its memory has no state"):
        cache.keep_state(1, torch.ones(2, WIDTH))


def test_files_name_the_class_and_its_fields(tmp_path) -> None:
    trunk, table = trunk_of(**KINDS["mixed"]), TokenTable.text(2, 5)
    trunk.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layers"]["own"]["mixer"] == {"_kind": "tests.shared.own_parts.Average", "rate": 0.5}
    assert config["layers"]["own"]["feed_forward"] == {"_kind": "tests.shared.own_parts.Squares", "hidden_dim": 24}
    again, embeds = Block.from_pretrained(tmp_path), torch.randn(2, 5, WIDTH)
    assert again.config == trunk.config
    assert torch.equal(again(embeds, table), trunk(embeds, table))


def test_its_step_is_recorded_only_where_all_parts_say_that_it_can_be(monkeypatch) -> None:
    trunk, table = trunk_of(), TokenTable.text(1, 2)
    cache = StaticCache(trunk.new_cache(1, 4))
    cache.cuda_graphs = True
    assert not trunk.static_step
    with pytest.raises(TypeError, match=r"a Decoder, whose steps cannot be recorded .* of a Decoder whose parts all say so"):
        cache.run(trunk, torch.randn(1, 2, WIDTH), table, cache.mask_for(table))
    monkeypatch.setattr(SquaresModule, "static_step", True, raising=False)
    assert trunk_of().static_step and trunk_of(**KINDS["mixed"]).static_step


@pytest.mark.unchecked
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_compiled_it_is_one_graph_and_the_same(options) -> None:
    torch.compiler.reset()
    trunk, table = trunk_of(**options), random_table(torch.Generator().manual_seed(3), length=12)
    embeds = torch.randn(3, 12, WIDTH)
    compiled, plain = [], []
    for function, found in ((torch.compile(trunk, fullgraph=True, backend="aot_eager"), compiled), (trunk, plain)):
        hidden = function(embeds, table)
        found += [hidden, *torch.autograd.grad(hidden[~table.is_padding].square().sum(), list(trunk.parameters()))]
    for ours, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
