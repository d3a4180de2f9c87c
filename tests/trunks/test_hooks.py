"""Hooks see what is computed, change what they should, and change nothing by looking."""

import pytest
import torch
from einops import rearrange

from mmblocks import GREEDY, Decoder, Generation, MultimodalModel, TextGrammar, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.models.omnigen.trunk import Phi3Decoder
from mmblocks.trunks import ChameleonTrunk, NEOTrunk, RoutedDecoder, hidden_states
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.caches.windowed_cache import WindowedCache
from mmblocks.trunks.hooks import HookedTrunk, TrunkHooks
from mmblocks.trunks.llamagen import LlamaGenTrunk
from mmblocks.trunks.routed.moe_decoder import MoEDecoder
from tests.shared.random_tables import random_table
from tests.shared.tiny import TOKENIZER, VOCABULARY, tiny_model

SIZES = {"dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48}
TRUNKS = {
    "decoder": (Decoder, {}),
    "routed": (RoutedDecoder, {"qk_norm": True}),
    "neo": (NEOTrunk, {}),
    "chameleon": (ChameleonTrunk, {"post_norm": True}),
    "experts": (MoEDecoder, {"num_experts": 3}),
    "phi3": (Phi3Decoder, {}),
    "llamagen": (LlamaGenTrunk, {}),
}


def trunk_of(name: str):
    torch.manual_seed(0)
    cls, options = TRUNKS[name]
    trunk = cls(**SIZES, **options).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return trunk


def tokens() -> tuple[torch.Tensor, object]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 20, 32, generator=generator), random_table(generator, length=20)


class Recorded:
    """What readers of every point of every layer saw, and the hooks that do so."""

    def __init__(self, num_layers: int = 3) -> None:
        self.hidden, self.attention, self.heads = ([[] for _ in range(num_layers + 1)] for _ in range(3))
        self.hooks = TrunkHooks(
            hidden={n: self.hidden[n].append for n in range(num_layers + 1)},
            attention={n: self.attention[n].append for n in range(num_layers)},
            heads={n: self.heads[n].append for n in range(num_layers)},
        )


@pytest.mark.parametrize("name", TRUNKS)
def test_readers_change_nothing(name) -> None:
    trunk, (embeds, table), recorded = trunk_of(name), tokens(), Recorded()
    states = hidden_states(trunk, embeds, table, range(4))
    plain = states[-1]
    real = ~table.is_padding
    seen = trunk(embeds, table, hooks=recorded.hooks)
    torch.testing.assert_close(seen[real], plain[real], atol=1e-6, rtol=1e-6 if name == "decoder" else 1e-4)
    for layer in range(3):
        (state,), (weights,), (heads,) = recorded.hidden[layer], recorded.attention[layer], recorded.heads[layer]
        torch.testing.assert_close(state[real], states[layer][real], atol=1e-5, rtol=1e-4)
        assert weights.shape == (3, 4, 20, 20) and heads.shape == (3, 4, 20, 8)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 20))
    assert torch.equal(trunk.norm(recorded.hidden[3][0]), seen)
    assert torch.equal(trunk(embeds, table), plain)  # nothing is left behind


def test_only_states_and_heads_take_the_fast_way_bit_for_bit() -> None:
    trunk, (embeds, table), recorded = trunk_of("decoder"), tokens(), Recorded()
    hooks = TrunkHooks(hidden=recorded.hooks.hidden, heads=recorded.hooks.heads)
    assert torch.equal(trunk(embeds, table, hooks=hooks), trunk(embeds, table))


@pytest.mark.parametrize("name", TRUNKS)
def test_decoding_shows_what_a_full_pass_shows(name) -> None:
    trunk, (embeds, _), recorded = trunk_of(name), tokens(), Recorded()
    table = random_table(torch.Generator().manual_seed(1), length=20)
    table = type(table).text(3, 20)._replace(modality=table.modality.clamp(min=0))
    trunk(embeds, table, hooks=recorded.hooks)
    cache, stepped = trunk.new_cache(3, 20), Recorded()
    for start, stop in ((0, 17), (17, 18), (18, 20)):
        trunk(embeds[:, start:stop], table.slice(start, stop), cache, hooks=stepped.hooks)
    for layer in range(3):
        for start, stop, weights in zip((0, 17, 18), (17, 18, 20), stepped.attention[layer], strict=True):
            torch.testing.assert_close(weights, recorded.attention[layer][0][:, :, start:stop, :stop], atol=1e-5, rtol=1e-4)
        for whole, pieces, axis in ((recorded.hidden, stepped.hidden, 1), (recorded.heads, stepped.heads, 2)):
            torch.testing.assert_close(torch.cat(pieces[layer], dim=axis), whole[layer][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TRUNKS)
def test_a_state_that_is_replaced_is_what_the_layer_reads(name) -> None:
    """Layer 0's effect is taken away: what layer 1 reads becomes the embeddings of all, in reading order."""
    trunk, (embeds, table), recorded = trunk_of(name), tokens(), Recorded()
    trunk(embeds, table, hooks=TrunkHooks(hidden={1: lambda x: embeds, 2: recorded.hidden[2].append}))
    shortened = trunk_of(name)
    shortened.layers = trunk.layers[1:]
    (state,) = hidden_states(shortened, embeds, table, [1])
    torch.testing.assert_close(recorded.hidden[2][0], state, atol=1e-5, rtol=1e-4)


def test_weights_and_heads_that_are_replaced() -> None:
    trunk, (embeds, table) = trunk_of("decoder"), tokens()
    attention, values = trunk.layers[0].attention, []
    own = trunk.layers[0].attention_norm(embeds)
    value = rearrange(attention.value(own), "b l (h d) -> b h l d", h=2).repeat_interleave(2, dim=1)
    itself = torch.eye(20).expand(3, 4, -1, -1)
    trunk(embeds, table, hooks=TrunkHooks(attention={0: lambda _: itself}, heads={0: values.append}))
    torch.testing.assert_close(values[0], value, atol=1e-5, rtol=1e-5)  # every token looks at itself: it finds its own value

    without = trunk(embeds, table, hooks=TrunkHooks(heads={1: lambda found: found * torch.tensor([0.0, 1, 1, 1])[:, None, None]}))
    with torch.no_grad():
        trunk.layers[1].attention.output.weight[:, :8] = 0
    torch.testing.assert_close(without, trunk(embeds, table), atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_observed_weights_and_checkpointed_layers_call_hooks_once() -> None:
    trunk, (embeds, table) = trunk_of("decoder"), tokens()
    gradients = []
    for hooks in (None, Recorded().hooks):
        inputs = embeds.clone().requires_grad_()
        trunk(inputs, table, hooks=hooks)[~table.is_padding].square().sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)

    trunk.train().checkpoint_activations = True
    recorded = Recorded()
    trunk(embeds.requires_grad_(), table, hooks=recorded.hooks).sum().backward()
    assert [len(seen) for seen in recorded.attention] == [1, 1, 1, 0]


def test_half_precision() -> None:
    trunk, (embeds, table), recorded = trunk_of("decoder").bfloat16(), tokens(), Recorded()
    seen = trunk(embeds.bfloat16(), table, hooks=recorded.hooks)
    assert seen.dtype == torch.bfloat16 and recorded.attention[0][0].dtype == torch.float32
    real = ~table.is_padding
    torch.testing.assert_close(seen[real], trunk(embeds.bfloat16(), table)[real], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", [None, StaticCache, WindowedCache])
def test_generation_with_hooks(kind) -> None:
    model, steps = tiny_model().eval(), []
    hooked = MultimodalModel(
        inputs=dict(model.inputs.items()),
        trunk=HookedTrunk(model.trunk, TrunkHooks(attention={1: steps.append})),
        outputs=dict(model.outputs.items()),
    )
    prompts, written = [[text("abc")], [text("a")]], []
    for each in (model, hooked):
        cache = kind and kind(each.trunk.new_cache(2, 8))
        batch = each.batch_builder(TOKENIZER)(prompts, padding="left")
        if kind is WindowedCache:  # its sinks want rows of one length
            cache = kind(each.trunk.new_cache(2, 8), sinks=0)
        found = generate_ids(each, batch, TextGrammar(VOCABULARY), Generation(max_tokens=4, sampling=GREEDY), cache=cache)
        written.append([step.ids.tolist() for step in found])
    assert written[0] == written[1]
    seen = [8, 8, 8] if kind is StaticCache else [4, 5, 6]
    assert [weights.shape for weights in steps] == [(2, 4, 3, 3), *((2, 4, 1, count) for count in seen)]


def test_what_does_not_fit_is_refused() -> None:
    trunk, (embeds, table) = trunk_of("decoder"), tokens()
    cache = trunk.new_cache(3, 20)
    with pytest.raises(ValueError, match=r"hooks.attention has \[3\]; accepted: 0 to 2, as the trunk has 3 layers"):
        trunk(embeds, table, cache, hooks=TrunkHooks(attention={3: print}))
    assert isinstance(cache, KVCache) and cache.length == 0
    with pytest.raises(TypeError, match="trunk is a Linear, which takes no hooks"):
        HookedTrunk(torch.nn.Linear(2, 2), TrunkHooks())
    with pytest.raises(ValueError, match=r"a hook gave \(3, 20\) in place of \(3, 20, 32\); accepted: the same shape, or None"):
        trunk(embeds, table, hooks=TrunkHooks(hidden={1: lambda x: x[..., 0]}))
