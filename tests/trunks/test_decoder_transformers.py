"""The decoder against transformers' models of the Llama family, read from the folders they would be published in."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Decoder, TokenTable

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
SCALINGS = {"plain": None, "linear": {"type": "linear", "factor": 3.0}, "dynamic": {"type": "dynamic", "factor": 2.0}}


def published(folder, theirs, scaling) -> Decoder:
    """Writes transformers' weights with the config that the field's checkpoints carry, and reads them with ours."""
    config = {**SIZES, "head_dim": theirs.config.head_dim, "rope_theta": 5000.0, "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(config))
    state = {f"model.{name}": value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return Decoder.from_pretrained(folder)


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def compare(theirs, ours: Decoder, length: int) -> None:
    embeds = torch.randn(2, length, SIZES["hidden_size"], generator=torch.Generator().manual_seed(1))
    output = theirs(inputs_embeds=embeds, output_hidden_states=True)
    taps = {number: torch.empty(0) for number in range(SIZES["num_hidden_layers"] + 1)}
    hidden = ours(embeds, TokenTable.text(2, length), taps=taps)
    torch.testing.assert_close(hidden, output.last_hidden_state, atol=1e-5, rtol=1e-4)
    for number, state in enumerate(output.hidden_states):
        torch.testing.assert_close(taps[number], state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("length", [7, 40])
def test_llama(tmp_path, scaling, length) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    if scaling is not None:
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    config = transformers.LlamaConfig(**SIZES, rope_parameters=rope)
    theirs = randomised(transformers.LlamaModel(config))
    compare(theirs, published(tmp_path, theirs, scaling), length)


def test_qwen3(tmp_path) -> None:
    config = transformers.Qwen3Config(**SIZES, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    theirs = randomised(transformers.Qwen3Model(config))
    ours = published(tmp_path, theirs, None)
    assert ours.config["qk_norm"]
    compare(theirs, ours, 20)
