"""Language models of transformers, from folders as transformers writes them: ``Decoder`` gives their numbers, or refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblocks import Decoder, TokenTable
from mmblocks.trunks import hidden_states

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

SLIDING = {"sliding_window": 6}
FULL_AND_SLIDING = {**SLIDING, "layer_types": ["full_attention", "sliding_attention"]}

FOLLOWED: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"hidden_act": "swish"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"pretraining_tp": 2},
    ],
    "mistral": [{"sliding_window": None}, {"sliding_window": 64}, SLIDING],
    "ministral": [SLIDING, FULL_AND_SLIDING],
    "qwen2": [
        {},
        {"use_sliding_window": False, "sliding_window": 4},
        {"use_sliding_window": True, **SLIDING, "max_window_layers": 0},
        {"use_sliding_window": True, **SLIDING, "max_window_layers": 1},
    ],
    "qwen3": [{}, {"use_sliding_window": True, **SLIDING, "max_window_layers": 1}],
    "phi3": [{}, SLIDING],
    "gemma": [{}],
    "gemma2": [SLIDING, {**SLIDING, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 3}],
    "gemma3_text": [
        SLIDING,
        {**FULL_AND_SLIDING, "query_pre_attn_scalar": 3},
        {
            **FULL_AND_SLIDING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ],
    "granite": [
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 8.0},
        {"attention_bias": True, "mlp_bias": True},
    ],
    "smollm3": [
        {"no_rope_layers": [1, 0]},
        {"no_rope_layer_interval": 2, "attention_bias": True},
        {"no_rope_layers": [0, 1], "use_sliding_window": True, **SLIDING},
    ],
    "helium": [{}],
    "ernie4_5": [{}, {"use_bias": True}],
    "seed_oss": [{}, {"attention_out_bias": True}],
    "arcee": [{}, {"mlp_bias": True}],
    "glm": [{}, {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}],
    "glm4": [{}],
    "olmo": [{}],
    "olmo2": [{}],
    "olmo3": [SLIDING, {**FULL_AND_SLIDING}],
    "exaone4": [{**SLIDING, "sliding_window_pattern": 2}, {"sliding_window": None, "layer_types": ["full_attention"] * 2}],
    "cohere": [{}, {"use_qk_norm": True}],
    "cohere2": [FULL_AND_SLIDING],
    "stablelm": [{}, {"use_parallel_residual": True, "use_qkv_bias": True}],
    "phi": [{}, {"qk_layernorm": True}],
    "starcoder2": [{}, SLIDING],
    "qwen3_moe": [
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0]},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 2},
    ],
    "qwen2_moe": [
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20},
    ],
}
"""Families that ``Decoder`` follows, each with variants of its config."""

OTHERS = (
    "apertus",
    "bitnet",
    "diffllama",
    "hunyuan_v1_dense",
    "llama4_text",
    "mixtral",
    "nemotron",
    "persimmon",
)
"""Families with norms, rotations, activations or layers of other kinds; the tensors of many have the names of Llama's."""

REFUSED: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    ],
    "qwen2": [{"hidden_act": "gelu"}],
    "qwen3": [{"attention_bias": True}],
    "phi3": [{"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}],
    "gemma": [{"attention_bias": True}],
    "gemma3_text": [{"use_bidirectional_attention": True}, {"attn_logit_softcapping": 1.0}],
    "olmo": [{"clip_qkv": 0.1}],
    "stablelm": [{"qk_layernorm": True}],
    "qwen2_moe": [{"use_sliding_window": True, **SLIDING, "max_window_layers": 0}],
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
    """A folder as transformers writes it, with the tensors under the names that they have in a whole language model."""
    theirs.save_pretrained(folder)
    state = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def variants(families: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(kind, options, id=f"{kind}-{number}")
        for kind, several in families.items()
        for number, options in enumerate(several)
    ]


LENGTH = 20


@pytest.mark.parametrize(("kind", "options"), variants(FOLLOWED))
def test_the_same_numbers(tmp_path, kind: str, options: dict[str, Any]) -> None:
    """States after every layer, steps with a cache, and gradients of every weight."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    theirs = model(kind, **options)
    write(tmp_path, theirs)
    ours = Decoder.from_pretrained(tmp_path)
    embeds = theirs.get_input_embeddings()(torch.randint(50, (2, LENGTH), generator=torch.Generator().manual_seed(1))).detach()
    table = TokenTable.text(2, LENGTH)
    output = theirs(inputs_embeds=embeds, output_hidden_states=True, use_cache=False)
    wanted = output.hidden_states
    states = hidden_states(ours, embeds, table, range(len(wanted)))
    for index, (mine, other) in enumerate(zip(states, wanted, strict=True)):
        if index:  # some models count their embeddings before these are scaled
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)

    cache, start, steps = ours.new_cache(2, LENGTH), 0, []
    for stop in (9, 10, 13, *range(14, LENGTH + 1)):
        steps.append(ours(embeds[:, start:stop], table.slice(start, stop), cache))
        start = stop
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted[-1], atol=1e-5, rtol=1e-5)

    upstream = torch.randn(wanted[-1].shape, generator=torch.Generator().manual_seed(2)) / 8
    (states[-1] * upstream).sum().backward()
    (wanted[-1] * upstream).sum().backward()
    compare_gradients(tmp_path, ours, theirs)


def compare_gradients(folder: Path, ours: Decoder, theirs: Any) -> None:
    """Of weights that have one: those of theirs are written like the weights, so that the names are the layout's."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    write(folder, theirs)
    expected = dict(Decoder.from_pretrained(folder).named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def rewritten(folder: Path, **entries: Any) -> None:
    """Changes entries of a config; None takes one away."""
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@torch.no_grad()
def test_one_rope_scaling_is_that_of_layers_without_a_window(tmp_path) -> None:
    """As the published files of OLMo 3 have it."""
    theirs = model("olmo3", **FULL_AND_SLIDING)
    write(tmp_path, theirs)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
    rewritten(tmp_path, rope_parameters=None, rope_theta=500000.0, rope_scaling=scaling)
    again = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    again.load_state_dict(theirs.state_dict())
    embeds = torch.randn(2, LENGTH, 32)
    ours = Decoder.from_pretrained(tmp_path)(embeds, TokenTable.text(2, LENGTH))
    torch.testing.assert_close(ours, again(inputs_embeds=embeds).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["olmo3", "gemma3_text"])
def test_rope_parameters_that_name_no_type_of_layer_are_refused(tmp_path, kind: str) -> None:
    write(tmp_path, model(kind, **FULL_AND_SLIDING))
    rewritten(tmp_path, rope_parameters={**ROPE, "rope_type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match=r"rope_parameters is .*; accepted: entries for each of full_attention and sliding"):
        Decoder.from_pretrained(tmp_path)


@torch.no_grad()
def test_minicpm_is_granite_with_factors_of_other_names(tmp_path) -> None:
    """transformers has no MiniCPM: the oracle is Granite with the factors that MiniCPM's code computes."""
    theirs = model("granite", residual_multiplier=1.4 / 2**0.5, attention_multiplier=8**-0.5)
    write(tmp_path, theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"):
        del config[name]
    config |= {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "scale_depth": 1.4, "scale_emb": 12}
    (tmp_path / "config.json").write_text(json.dumps({**config, "dim_model_base": 256}))
    embeds = torch.randn(2, LENGTH, 32)
    ours = Decoder.from_pretrained(tmp_path)(embeds, TokenTable.text(2, LENGTH))
    torch.testing.assert_close(ours, theirs(inputs_embeds=embeds).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "options"), variants(REFUSED))
def test_refused_by_name(tmp_path, kind: str, options: dict[str, Any]) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    write(tmp_path, model(kind, **options))
    with pytest.raises(ValueError, match="fits no layout of Decoder"):
        Decoder.from_pretrained(tmp_path)


def test_a_refusal_says_what_else_loads_the_model(tmp_path) -> None:
    write(tmp_path, model("nemotron"))
    message = "its config does not fit: model_type is 'nemotron'; accepted: .*llama.*TransformersTrunk loads most other decoders"
    with pytest.raises(ValueError, match=message):
        Decoder.from_pretrained(tmp_path)
