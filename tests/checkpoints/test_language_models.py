"""What the configs of language models say about their embeddings and heads."""

from typing import Any

import pytest

from mmblocks import LMHead, TextEmbedding
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.heads import TiedLMHead

SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2}


def layout_of(cls: Any, name: str) -> Layout:
    (layout,) = (layout for layout in cls.layouts if layout.name == name)
    return layout


def embedding(**config: Any) -> dict[str, Any]:
    return layout_of(TextEmbedding, "llama").arguments({**SIZES, **config})


def head(tied: bool, **config: Any) -> dict[str, Any]:
    return layout_of(LMHead, "llama-tied" if tied else "llama").arguments({**SIZES, **config})


READ: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}, {}),
    "qwen3_moe": ({"num_experts": 4, "moe_intermediate_size": 8}, {}, {}),
    "gemma": ({}, {"scale": 8.0}, {}),
    "gemma2": ({}, {"scale": 8.0}, {"softcap": 30.0}),
    "gemma3_text": ({"final_logit_softcapping": 5.0}, {"scale": 8.0}, {"softcap": 5.0}),
    "granite": ({"embedding_multiplier": 12.0, "logits_scaling": 8.0}, {}, {"scale": 0.125}),
    "cohere": ({}, {}, {"scale": 0.0625}),
    "cohere2": ({"logit_scale": 0.25}, {}, {"scale": 0.25}),
    "minicpm": ({"scale_emb": 12, "dim_model_base": 16}, {"scale": 12}, {"scale": 0.25}),
    "phi": ({}, {}, {"bias": True}),
}
"""``model_type`` -> further entries, and what they mean for the embedding and for the head."""


@pytest.mark.parametrize("kind", READ)
def test_what_is_read(kind: str) -> None:
    entries, scaled, shaped = READ[kind]
    sizes = {"vocab_size": 50, "dim": 64}
    assert embedding(model_type=kind, **entries) == {**sizes, **scaled}
    for tied in (False, True):
        assert head(tied, model_type=kind, tie_word_embeddings=tied, **entries) == {**sizes, **shaped}
    tied_head = layout_of(TiedLMHead, "llama-tied").arguments({**SIZES, "model_type": kind, "tie_word_embeddings": True, **entries})
    assert tied_head == {name: value for name, value in shaped.items() if name != "bias"}


def test_no_cap_is_said_by_null() -> None:
    null = {"model_type": "gemma2", "tie_word_embeddings": True, "final_logit_softcapping": None}
    assert head(True, **null)["softcap"] is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nemotron"}, "model_type is 'nemotron'; accepted: llama.*gemma2"),
        ({"architectures": ["GemmaForCausalLM"]}, "architectures names 'GemmaForCausalLM'"),
        ({"model_type": "llama", "architectures": ["GemmaForCausalLM"]}, "architectures names 'GemmaForCausalLM'"),
        ({"model_type": "gemma2", "architectures": ["LlamaForCausalLM"]}, "architectures names 'LlamaForCausalLM'"),
    ],
)
def test_other_models_are_refused(config: dict[str, Any], message: str) -> None:
    for read in (embedding, lambda **config: head(False, tie_word_embeddings=False, **config)):
        with pytest.raises(ValueError, match=message):
            read(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama", "scale_emb": 12}, "scale_emb = 12"),
        ({"model_type": "llama", "embedding_multiplier": 12.0}, r"embedding_multiplier is 12\.0; accepted: 1"),
    ],
)
def test_embeddings_with_factors_of_other_models_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embedding(**config)


@pytest.mark.parametrize("entry", ["logit_scale", "logits_scaling", "dim_model_base", "final_logit_softcapping"])
def test_heads_with_factors_of_other_models_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=f"{entry} = 2"):
        head(False, model_type="llama", **{entry: 2})


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "starcoder2", "minicpm"])
def test_where_nothing_is_said_these_heads_are_tied(kind: str) -> None:
    assert head(True, model_type=kind)["dim"] == 64
    with pytest.raises(ValueError, match="no tie_word_embeddings; accepted: False"):
        head(False, model_type=kind)


@pytest.mark.parametrize("kind", ["llama", "granite", "phi"])
def test_where_nothing_is_said_these_heads_are_not_tied(kind: str) -> None:
    assert head(False, model_type=kind)["dim"] == 64
    with pytest.raises(ValueError, match="no tie_word_embeddings; accepted: True"):
        head(True, model_type=kind)


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for kind in sorted(transformers.CONFIG_MAPPING.keys() & READ.keys()):
        config = transformers.CONFIG_MAPPING[kind]()
        assert head(config.tie_word_embeddings, model_type=kind)["dim"] == 64
        wanted = {"scale": getattr(config, "logit_scale", None), "softcap": getattr(config, "final_logit_softcapping", None)}
        found = head(config.tie_word_embeddings, model_type=kind)
        assert {name: found.get(name) for name in wanted} == wanted or kind == "granite"
