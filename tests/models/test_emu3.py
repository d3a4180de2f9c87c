"""Emu3 against transformers' Emu3ForCausalLM: same checkpoint folder, same numbers."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Generation, GridGrammar, Sampling, TokenTable, codes, text
from mmblocks.models import Emu3
from mmblocks.vocabulary import EMU3

transformers = pytest.importorskip("transformers")

CONFIG = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "attention_dropout": 0.0, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model with random weights, and ours read from the folder that it would be published in."""
    torch.manual_seed(0)
    config = transformers.Emu3TextConfig(**CONFIG, pad_token_id=0)
    theirs = transformers.Emu3ForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("emu3")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return theirs, Emu3.from_pretrained(folder)


def logits_of(model: Emu3, ids: torch.Tensor) -> torch.Tensor:
    hidden = model.trunk(model.inputs["text"](ids), TokenTable.text(*ids.shape))
    return model.outputs["text"].logits(hidden)


@pytest.mark.parametrize("shape", [(1, 1), (2, 17), (3, 40)])
def test_logits_and_gradients_equal_transformers(both, shape) -> None:
    theirs, ours = both
    ids = torch.randint(CONFIG["vocab_size"], shape, generator=torch.Generator().manual_seed(1))
    wanted, got = theirs(ids).logits, logits_of(ours, ids)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)

    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    their_weight, our_weight = theirs.model.layers[0].mlp.down_proj.weight, ours.trunk.layers[0].mlp.down.weight
    (their_gradient,) = torch.autograd.grad((wanted * upstream).sum(), their_weight)
    (our_gradient,) = torch.autograd.grad((got * upstream).sum(), our_weight)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-4, rtol=1e-3)


def test_greedy_generation_equals_transformers(both) -> None:
    from mmblocks import GREEDY, TextGrammar

    theirs, ours = both
    prompts = [[5, 9, 200, 31], [7, 8]]
    padded = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    attention = (padded != 0).long()
    wanted = theirs.generate(
        padded, attention_mask=attention, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=299
    )[:, 4:]
    generated = ours.generate(
        [[text(prompt)] for prompt in prompts], TextGrammar(300, stop=(299,)), Generation(max_tokens=12, sampling=GREEDY)
    )
    for row, segment in generated:
        stop = wanted[row].tolist().index(299) if 299 in wanted[row] else 12
        assert segment.content == wanted[row].tolist()[:stop]


def test_an_image_in_emu3s_own_format_can_be_generated() -> None:
    """The real vocabulary's layout, at a width of 16: size, rows and closing come out as Emu3 writes them."""
    torch.manual_seed(0)
    model = Emu3(vocab_size=184622, dim=16, num_layers=1, num_heads=2, mlp_dim=16).eval()
    prompt = [text([151849, 100, EMU3.begin])]
    grammar = GridGrammar(EMU3, size=(2, 3))
    (generated,) = model.generate([prompt], grammar, Generation(max_tokens=30, sampling=Sampling(top_k=2048)))
    assert generated.segment.grid.shape == (2, 3)
    again = model.batch_builder()([[*prompt[:0], codes(generated.segment.grid, EMU3)]])
    assert again.ids[0, -2:].tolist() == [151847, 151853]
