"""Configs of published checkpoints are read whole: nothing in them passes unseen."""

import json
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks import Block
from mmblocks.checkpoints.layouts.harmless import is_harmless
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import PublishedConfig, check_model, only, plain

CONFIG = {"dim": 2, "inner": {"act": "silu", "eps": 1e-5}, "parts": [{"size": 3}, 4], "nothing": None, "list": [1, 2]}


def test_what_is_read_is_noted() -> None:
    config = PublishedConfig(CONFIG)
    assert config["dim"] == 2 and config.get("list") == [1, 2] and config.get("absent", 5) == 5
    assert config.unread() == {"inner.act": "silu", "inner.eps": 1e-5, "parts.0.size": 3, "parts.1": 4}
    assert config["inner"]["act"] == "silu" and config["parts"][0]["size"] == 3
    assert config.unread() == {"inner.eps": 1e-5}


def test_looking_at_names_is_not_reading() -> None:
    config = PublishedConfig(CONFIG)
    assert "dim" in config and "absent" not in config and len(config) == 5 and set(config) == set(CONFIG)
    assert repr(config) == repr(CONFIG) and bool(config["inner"]) and not PublishedConfig({})
    assert "dim" in config.unread() and "inner.act" in config.unread()


def test_what_is_handed_on_counts_as_read() -> None:
    config = PublishedConfig(CONFIG)
    arguments = plain({"inner": config["inner"], "parts": tuple(config["parts"])})
    assert arguments == {"inner": CONFIG["inner"], "parts": ({"size": 3}, 4)}
    assert type(arguments["inner"]) is dict
    assert config.unread() == {"dim": 2, "list": [1, 2]}
    assert config.whole() == CONFIG and not config.unread()


@pytest.mark.parametrize(("value", "accepted"), [("silu", ("silu", "swish")), (None, ("silu",)), (1, (1.0,)), (False, (False,))])
def test_only_accepts(value: Any, accepted: tuple[Any, ...]) -> None:
    only({"act": value}, "act", *accepted)
    only({}, "act", *accepted)


@pytest.mark.parametrize(("value", "accepted"), [("gelu", ("silu", "swish")), (True, (1,)), (0, (False,)), ("x" * 500, ("silu",))])
def test_only_refuses(value: Any, accepted: tuple[Any, ...]) -> None:
    config = PublishedConfig({"inner": {"act": value}})
    with pytest.raises(ValueError, match=r"^inner\.act is .{1,110}; accepted: ") as caught:
        only(config["inner"], "act", *accepted)
    assert all(repr(one) in str(caught.value) for one in accepted)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "eve-qwen2", "architectures": ["EVEQwen2ForCausalLM"]},
        {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM", "Emu3Model"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
    ],
)
def test_a_models_own_name(config: dict[str, Any]) -> None:
    check_model(config, "llama", "emu3", "eve-qwen2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; accepted: llama, qwen2"),
        ({"model_type": 3}, "model_type is 3; accepted"),
        (
            {"model_type": "llama", "architectures": ["GemmaForCausalLM"]},
            "architectures names 'GemmaForCausalLM'; accepted: classes of",
        ),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "architectures names 'Qwen2MoeForCausalLM'"),
        ({"architectures": ["LlamaForCausalLM", "Qwen3Model"]}, "architectures names 'Qwen3Model'"),
    ],
)
def test_another_models_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(config, "llama", "qwen2")


@pytest.mark.parametrize(
    ("key", "value", "patterns", "expected"),
    [
        ("torch_dtype", "bfloat16", (), True),
        ("text_config.bos_token_id", 1, (), True),
        ("text_config.id2label.0", "LABEL_0", (), True),
        ("auto_map.AutoConfig", "configuration_emu3.Emu3Config", (), True),
        ("text_config.auto_map.AutoModel", "modeling_phi3.Phi3Model", (), True),
        ("is_encoder_decoder", False, (), True),
        ("is_encoder_decoder", True, (), False),
        ("hidden_act", "silu", (), False),
        ("vision_config.hidden_act", "silu", ("vision_config.*",), True),
        ("text_config.hidden_act", "silu", ("vision_config.*", "hidden_act"), False),
    ],
)
def test_what_changes_no_numbers(key: str, value: Any, patterns: tuple[str, ...], expected: bool) -> None:
    assert is_harmless(key, value, patterns) is expected


class Scale(Block):
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "scale",
            (Rule("w", "weight"),),
            config=lambda config: {"dim": config["text_config"]["hidden_size"]},
            harmless=("vision_config.*",),
            otherwise="Bias loads it",
        ),
        Layout("bare", (Rule("bare.w", "weight"),)),
    )

    def __init__(self, *, dim: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


def published(folder, **text: Any):
    config = {"text_config": {"hidden_size": 2, **text}, "vision_config": {"act": "gelu"}, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


def test_an_entry_that_nobody_reads_is_refused(tmp_path) -> None:
    assert Scale.from_pretrained(published(tmp_path)).weight.shape == (2,)
    published(tmp_path, multiplier=3.0)
    message = (
        r"the config has entries that the layout 'scale' does not know: text_config.multiplier = 3.0; accepted: a config without"
        r" them. If they change no numbers, name them in from_pretrained\(..., ignored_entries=...\). Bias loads it"
    )
    for name in (None, "scale"):
        with pytest.raises(ValueError, match=message):
            Scale.from_pretrained(tmp_path, layout=name)
    assert Scale.from_pretrained(tmp_path, ignored_entries=["text_config.multiplier"]).weight.shape == (2,)


def test_a_layout_without_a_reader_takes_no_config(tmp_path) -> None:
    save_file({"bare.w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1}))
    assert Scale.from_pretrained(tmp_path).weight.shape == (2,)
    (tmp_path / "config.json").write_text(json.dumps({"eps": 1e-3}))
    with pytest.raises(ValueError, match=r"the layout 'bare' does not know: eps = 0\.001"):
        Scale.from_pretrained(tmp_path)


def test_ignored_entries_have_to_be_there(tmp_path) -> None:
    published(tmp_path)
    for name in ("text_config.absent", "absent", "torch_dtype.more"):
        with pytest.raises(
            ValueError, match=rf"ignored_entries names '{name}'; the config has: text_config, vision_config, torch_dt"
        ):
            Scale.from_pretrained(tmp_path, ignored_entries=[name])
    Scale().save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"ignored_entries is \('dim',\), but .*own was written by save_pretrained; accept"):
        Scale.from_pretrained(tmp_path / "own", ignored_entries=["dim"])
