"""transformers models as trunks: the same numbers as ours, and the contract that every trunk keeps."""

import json
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, TextGrammar, TokenTable, text
from mmblocks.sequence.masks import Dense, visible
from mmblocks.trunks import hidden_states
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.transformers.trunk import TransformersTrunk
from tests.shared.random_tables import random_table

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    where = tmp_path_factory.mktemp("llama")
    (where / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama", "rope_theta": 10000.0}))
    save_file({name: value.contiguous() for name, value in llama.state_dict().items()}, where / "model.safetensors")
    return where


@pytest.mark.parametrize("seed", range(3))
def test_equals_our_decoder_on_images_padding_and_packed_documents(folder, seed: int) -> None:
    theirs, ours = TransformersTrunk.from_pretrained(folder), Decoder.from_pretrained(folder)
    table = random_table(torch.Generator().manual_seed(seed), length=30)
    embeds = torch.randn(*table.shape, 32)
    states, wanted = (hidden_states(trunk, embeds, table, range(3)) for trunk in (theirs, ours))
    got, full = states[-1], wanted[-1]
    real = ~table.is_padding
    torch.testing.assert_close(got[real], full[real], atol=1e-5, rtol=1e-4)
    for number in range(3):
        torch.testing.assert_close(states[number][real], wanted[number][real], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs(embeds, table, mask=Dense(visible(table))), got, atol=1e-5, rtol=1e-4)


def test_around_shares_weights_and_leaves_the_model_as_it_was(llama) -> None:
    trunk = TransformersTrunk.around(llama)
    ids = torch.randint(40, (2, 9))
    hidden = trunk(llama.get_input_embeddings()(ids), TokenTable.text(2, 9))
    torch.testing.assert_close(llama.lm_head(hidden), llama(ids).logits)
    assert trunk.model.layers is llama.model.layers


def test_what_is_taken_back_was_never_read(folder) -> None:
    """As grids of codes that are sampled in parallel are read anew in each pass."""
    trunk = TransformersTrunk.from_pretrained(folder)
    embeds, table = torch.randn(2, 9, 32), TokenTable.text(2, 9)
    cache = trunk.new_cache(2, 9)
    trunk(embeds[:, :4], table.slice(0, 4), cache)
    for start, stop in ((4, 7), (5, 9)):
        cache.forget(cache.length - start)
        found = trunk(embeds[:, start:stop], table.slice(start, stop), cache)
        torch.testing.assert_close(found, trunk(embeds, table)[:, start:stop], atol=1e-5, rtol=1e-4)


def test_cached_equals_full(folder) -> None:
    trunk = TransformersTrunk.from_pretrained(folder)
    embeds, table = torch.randn(2, 9, 32), TokenTable.text(2, 9)
    cache = trunk.new_cache(2, 10)
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in ((0, 4), (4, 5), (5, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(steps, 1), trunk(embeds, table), atol=1e-5, rtol=1e-4)
    assert cache.num_bytes == 2 * 2 * 2 * 2 * 9 * 8 * 4
    one = cache.rows(torch.tensor([1]))
    assert one.past.layers[0].keys.shape[0] == 1
    with pytest.raises(ValueError, match="do not fit a cache"):
        trunk(embeds[:, :2], table.slice(0, 2), cache)


def test_trains_saves_and_generates_in_a_model(folder, tmp_path) -> None:
    trunk = TransformersTrunk.from_pretrained(folder)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=40, dim=32)}, trunk=trunk, outputs={"lm": LMHead(dim=32, vocab_size=40)}
    )
    batch = model.batch_builder()([[text([1, 2, 3], target="lm")], [text([4, 5], target="lm")]])
    model.train()(batch).losses["lm"].backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())
    model.eval().save_pretrained(tmp_path / "model")
    again = MultimodalModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again(batch).hidden, model(batch).hidden)
    (generated,) = model.generate([[text([1, 2, 3])]], TextGrammar(40, stop=(39,)), Generation(max_tokens=4))
    assert len(generated.segment.content) <= 4


def recorder() -> tuple[dict, TrunkHooks]:
    """Readers of every point, and what they have read by kind and number."""
    seen = {"hidden": {}, "attention": {}, "heads": {}}
    readers = {kind: {n: partial(read.__setitem__, n) for n in range(2 + (kind == "hidden"))} for kind, read in seen.items()}
    return seen, TrunkHooks(**readers)


@pytest.mark.parametrize("seed", range(2))
def test_hooks_read_what_those_of_our_decoder_read(folder, seed: int) -> None:
    theirs, ours = TransformersTrunk.from_pretrained(folder), Decoder.from_pretrained(folder)
    table = random_table(torch.Generator().manual_seed(seed), length=20)
    embeds, real = torch.randn(*table.shape, 32), ~table.is_padding
    (got, hooks), (wanted, own) = recorder(), recorder()
    hidden = theirs(embeds, table, hooks=hooks)
    torch.testing.assert_close(hidden[real], theirs(embeds, table)[real], atol=1e-5, rtol=1e-4)
    ours(embeds, table, hooks=own)
    for kind in got:
        for number, value in got[kind].items():
            rows = real if kind == "hidden" else real[:, None].expand(-1, 4, -1)
            torch.testing.assert_close(value[rows], wanted[kind][number][rows], atol=1e-5, rtol=1e-4)


def test_hooks_change_what_those_of_our_decoder_change(folder) -> None:
    theirs, ours = TransformersTrunk.from_pretrained(folder), Decoder.from_pretrained(folder)
    embeds, table = torch.randn(2, 9, 32), TokenTable.text(2, 9)
    hooks = TrunkHooks(
        hidden={1: lambda x: x + 0.3, 2: lambda x: x * 2 + 1},
        attention={1: lambda weights: weights.flip(1)},
        heads={0: lambda found: found * torch.tensor([1.0, 0, 1, 2])[:, None, None]},
    )
    for wanted in (ours(embeds, table, hooks=hooks), theirs(embeds, table, hooks=hooks)):
        caches = [trunk.new_cache(2, 9) for trunk in (ours, theirs)]
        for trunk, cache in zip((ours, theirs), caches, strict=True):
            steps = [trunk(embeds[:, a:b], table.slice(a, b), cache, hooks=hooks) for a, b in ((0, 7), (7, 8), (8, 9))]
            torch.testing.assert_close(torch.cat(steps, 1), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(wanted, theirs(embeds, table), atol=1e-2)


def test_hooks_belong_to_the_thread_that_gave_them(folder) -> None:
    """Another pass that runs while a hook is being called sees nothing of it."""
    trunk = TransformersTrunk.from_pretrained(folder)
    embeds, table, others = torch.randn(1, 5, 32), TokenTable.text(1, 5), []
    with ThreadPoolExecutor(1) as pool:
        hooks = TrunkHooks(
            hidden={0: lambda x: x + 1},
            attention={0: lambda _: others.append(pool.submit(trunk, embeds, table).result())},
        )
        trunk(embeds, table, hooks=hooks)
    assert len(others) == 1 and torch.equal(others[0], trunk(embeds, table))


def test_a_model_that_was_handed_in_lets_attention_be_seen_when_asked(llama) -> None:
    model = deepcopy(llama)
    trunk, (embeds, table), (seen, hooks) = (
        TransformersTrunk.around(model),
        (torch.randn(1, 5, 32), TokenTable.text(1, 5)),
        recorder(),
    )
    plain = trunk(embeds, table)
    trunk(embeds, table, hooks=TrunkHooks(hidden={1: lambda _: None}))
    with pytest.raises(ValueError, match=r"layers \[0, 1\] of LlamaModel was not seen"):
        trunk(embeds, table, hooks=hooks)
    model.set_attn_implementation("mmblocks")
    torch.testing.assert_close(trunk(embeds, table, hooks=hooks), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(trunk(embeds, table), plain)
    assert seen["attention"][1].shape == (1, 4, 5, 5)
    with pytest.raises(ValueError, match=r"hooks.heads has \[2\]; accepted: 0 to 1"):
        trunk(embeds, table, hooks=TrunkHooks(heads={2: print}))
    model.model.layers[1].gradient_checkpointing = True
    with pytest.raises(ValueError, match="layers are recomputed"):
        trunk.train()(embeds, table, hooks=hooks)


def test_bfloat16(folder) -> None:
    trunk = TransformersTrunk.from_pretrained(folder, dtype=torch.bfloat16)
    assert trunk(torch.randn(1, 3, 32, dtype=torch.bfloat16), TokenTable.text(1, 3)).dtype == torch.bfloat16


def test_code_that_a_config_names_is_never_run(monkeypatch) -> None:
    """transformers would ask whoever sits before the screen."""
    kinds, models = transformers.CONFIG_MAPPING, transformers.MODEL_MAPPING
    kind = next(name for name in ("encoder-decoder", "vision-encoder-decoder", *kinds) if kinds[name] not in models)
    parts = {"encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}} if kind.endswith("encoder-decoder") else {}
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "n")
    with pytest.raises(ValueError, match=r"trust_remote_code|Unrecognized"):
        TransformersTrunk(language_model={"model_type": kind, **parts, "auto_map": {"AutoModel": "someone/harm--code.Model"}})
    assert asked == []


def test_what_does_not_fit_is_refused(folder) -> None:
    with pytest.raises(ValueError, match="model_type"):
        TransformersTrunk(language_model=SIZES)
    with pytest.raises(ValueError, match="see a window"):
        TransformersTrunk(language_model={"model_type": "gemma2", "num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 8})
    trunk = TransformersTrunk.from_pretrained(folder)
    with pytest.raises(ValueError, match="do not fit"):
        trunk(torch.randn(1, 3, 32), TokenTable.text(1, 4))
    with pytest.raises(TypeError, match="cache is a KVCache"):
        trunk(torch.randn(1, 3, 32), TokenTable.text(1, 3), Decoder.from_pretrained(folder).new_cache(1, 3))
