"""The decoder trunks against transformers' models, read from the folders they would be published in."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Decoder, LMHead, TokenTable
from mmblocks.sequence.positions import mrope
from mmblocks.trunks import hidden_states
from mmblocks.trunks.chameleon import ChameleonTrunk
from mmblocks.trunks.llama_config import llama_config

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
}
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
SCALINGS = {
    "plain": None,
    "linear": {"type": "linear", "factor": 3.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 0.05,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 12,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
    "yarn, all entries": {
        "type": "yarn",
        "factor": 3.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 2.0,
        "beta_slow": 0.1,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
}


def published(folder, cls, theirs, **config):
    """Writes transformers' weights with the config that the field's checkpoints carry, and reads them with ours."""
    config = {**SIZES, "rope_theta": 5000.0, **config}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ours = cls.from_pretrained(folder)
    shapes = {name: value.shape for name, value in state.items()}
    for layout in (layout for layout in cls.layouts if not layout.check(shapes, ours)):
        written = dict(layout.convert(ours.state_dict(), ours.config, to="theirs"))
        assert all(torch.equal(value, state[name]) for name, value in written.items())
    return ours


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def compare(folder, theirs, ours: Decoder, length: int, ids: int = SIZES["vocab_size"]) -> None:
    """Every layer's states, and the logits, of two rows."""
    ids = torch.randint(ids, (2, length), generator=torch.Generator().manual_seed(1))
    output = theirs(input_ids=ids, output_hidden_states=True)
    embeds = theirs.get_input_embeddings()(ids)
    states = hidden_states(ours, embeds, TokenTable.text(2, length), range(SIZES["num_hidden_layers"] + 1))
    hidden = states[-1]
    for number, state in enumerate(output.hidden_states):
        torch.testing.assert_close(states[number], state, atol=1e-5, rtol=1e-4)
    logits = LMHead.from_pretrained(folder).logits(hidden)
    seen = output.logits > torch.finfo(torch.float32).min  # Chameleon's model hides the image ids
    torch.testing.assert_close(logits[seen], output.logits[seen], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("length", [7, 40])
def test_llama(tmp_path, scaling, length) -> None:
    given = dict(scaling or {})
    rope = {**ROPE, "rope_type": given.pop("type", "default"), **given}
    theirs = randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=rope)))
    compare(tmp_path, theirs, published(tmp_path, Decoder, theirs, rope_scaling=scaling), length)


def test_qwen2_has_biases(tmp_path) -> None:
    theirs = randomised(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, rope_parameters=ROPE)))
    ours = published(tmp_path, Decoder, theirs, sliding_window=8, use_sliding_window=False)
    assert ours.config["qkv_bias"]
    compare(tmp_path, theirs, ours, 20)


def test_qwen3_has_norms_of_heads(tmp_path) -> None:
    config = transformers.Qwen3Config(**SIZES, head_dim=16, rope_parameters=ROPE)
    theirs = randomised(transformers.Qwen3ForCausalLM(config))
    ours = published(tmp_path, Decoder, theirs, head_dim=16)
    assert ours.config["qk_norm"]
    compare(tmp_path, theirs, ours, 20)


def phi3(**config):
    return transformers.Phi3Config(**{**SIZES, "pad_token_id": 0, "rope_parameters": ROPE, **config})


def test_phi3_has_fused_projections(tmp_path) -> None:
    theirs = randomised(transformers.Phi3ForCausalLM(phi3()))
    ours = published(tmp_path, Decoder, theirs)
    compare(tmp_path, theirs, ours, 20)


@pytest.mark.parametrize("length", [12, 30])
def test_phi3_reads_short_and_long_rows_with_other_stretches(tmp_path, length: int) -> None:
    scaling = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0]}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    rope = {**ROPE, "rope_type": "longrope", "original_max_position_embeddings": 16, **scaling}
    theirs = randomised(transformers.Phi3ForCausalLM(phi3(**lengths, rope_parameters=rope)))
    ours = published(tmp_path, Decoder, theirs, **lengths, rope_scaling={"type": "su", **scaling})
    compare(tmp_path, theirs, ours, length)


@pytest.mark.parametrize("post_norm", [False, True], ids=["7b", "34b"])
def test_chameleon(tmp_path, post_norm: bool) -> None:
    vision = {
        "embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "resolution": 16, "base_channels": 32,
        "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    ids = {"<image>": 49, "IMGIMGAAZ": 40, "IMGIMGABZ": 41}
    config = transformers.ChameleonConfig(
        **SIZES, vq_config=vision, vocabulary_map=ids, swin_norm=post_norm, rope_parameters=ROPE, pad_token_id=0
    )
    theirs = randomised(transformers.ChameleonForConditionalGeneration(config))
    ours = published(tmp_path, ChameleonTrunk, theirs, swin_norm=post_norm)
    compare(tmp_path, theirs, ours, 20, ids=40)


def test_qwen2_vl_counts_on_three_axes() -> None:
    """The numbers of m-RoPE are transformers' own rule for them; the trunk is read through them."""
    rope = {**ROPE, "mrope_section": [1, 2, 3]}
    config = transformers.models.qwen2_vl.Qwen2VLTextConfig(**SIZES, rope_parameters=rope)
    theirs = randomised(transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLTextModel(config))
    table = TokenTable.text(1, 10)
    table.span[:, 2:8], table.order[:, 8:] = 0, torch.tensor([8, 9])
    table.grid[:, 2:8, 1:] = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    wanted = torch.tensor([[0, 1, *[2] * 6, 5, 6], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]])
    assert torch.equal(mrope(table)[0].T, wanted)

    arguments = {**llama_config({**SIZES, "rope_theta": 5000.0}, models=("qwen2",)), "qkv_bias": True, "rope_sections": (1, 2, 3)}
    ours = Decoder(**arguments).eval()
    (layout,) = (layout for layout in Decoder.layouts if layout.name == "qwen2")
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(dict(layout.convert(state, ours.config)))
    embeds = torch.randn(1, 10, SIZES["hidden_size"])
    theirs_hidden = theirs(inputs_embeds=embeds, position_ids=wanted[:, None]).last_hidden_state
    torch.testing.assert_close(ours(embeds, table), theirs_hidden, atol=1e-5, rtol=1e-4)
    cache = ours.new_cache(1, 10)
    steps = [ours(embeds[:, a:b], table.slice(a, b), cache) for a, b in ((0, 8), (8, 9), (9, 10))]
    torch.testing.assert_close(torch.cat(steps, 1), theirs_hidden, atol=1e-5, rtol=1e-4)
