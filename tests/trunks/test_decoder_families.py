"""Language models of transformers, from folders as transformers writes them: ``Decoder`` gives their numbers, or refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Decoder, TokenTable

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of every model; what a family's config does not know is left out."""

ROPE = {"rope_type": "default", "rope_theta": 500.0}

FOLLOWED: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"hidden_act": "swish"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"pretraining_tp": 2},
    ],
    "mistral": [{"sliding_window": None}, {"sliding_window": 64}],
    "qwen2": [{}, {"use_sliding_window": False, "sliding_window": 4}],
    "qwen3": [{}],
    "phi3": [{}],
}
"""Families that ``Decoder`` follows, each with variants of its config."""

OTHERS = (
    "apertus",
    "arcee",
    "bitnet",
    "cohere",
    "cohere2",
    "diffllama",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "granite",
    "helium",
    "hunyuan_v1_dense",
    "ministral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "persimmon",
    "qwen2_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Families with norms, rotations, factors or layers of other kinds; the tensors of many have the names of Llama's."""

REFUSED: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    ],
    "mistral": [{"sliding_window": 4}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, {"hidden_act": "gelu"}],
    "qwen3": [{"attention_bias": True}],
    "phi3": [{"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}],
    **{kind: [{}] for kind in OTHERS},
}
"""Families and variants that it does not."""


def model(kind: str, **options: Any) -> Any:
    """A small one with weights that make every part of it count."""
    known = transformers.CONFIG_MAPPING[kind]
    names = set(known().to_dict())
    config = known(**{name: value for name, value in SIZES.items() if name in names}, **options)
    if not hasattr(config, "pad_token_id"):  # which some classes of transformers 5.0 ask for and do not have
        config.pad_token_id = None
    torch.manual_seed(0)
    made = transformers.AutoModel.from_config(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return made.eval()


def write(folder: Path, theirs: Any) -> None:
    """The config as transformers writes it, and the tensors under the names that they have in a whole language model."""
    described = json.loads(theirs.config.to_json_string())
    (folder / "config.json").write_text(json.dumps(described))
    state = {f"model.{name}": value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def variants(families: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(kind, options, id=f"{kind}-{number}")
        for kind, several in families.items()
        for number, options in enumerate(several)
    ]


@pytest.mark.parametrize(("kind", "options"), variants(FOLLOWED))
def test_the_same_numbers(tmp_path, kind: str, options: dict[str, Any]) -> None:
    theirs = model(kind, **options)
    write(tmp_path, theirs)
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    ours = Decoder.from_pretrained(tmp_path)(theirs.get_input_embeddings()(ids), TokenTable.text(2, 20))
    torch.testing.assert_close(ours, theirs(input_ids=ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "options"), variants(REFUSED))
def test_refused_by_name(tmp_path, kind: str, options: dict[str, Any]) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    write(tmp_path, model(kind, **options))
    with pytest.raises(ValueError, match="fits no layout of Decoder"):
        Decoder.from_pretrained(tmp_path)


def test_a_refusal_says_what_else_loads_the_model(tmp_path) -> None:
    write(tmp_path, model("granite"))
    message = "its config does not fit: model_type is 'granite'; accepted: .*llama.*TransformersTrunk loads most other decoders"
    with pytest.raises(ValueError, match=message):
        Decoder.from_pretrained(tmp_path)
