"""Configs of published repositories: every layout that their weights fit reads them."""

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import mmblocks
from mmblocks import Block, configurable
from mmblocks.checkpoints.layouts.harmless import is_harmless
from mmblocks.checkpoints.layouts.layout import Layout
from tests.parity.test_config_keys import leaves, matters
from tests.shared.published_repositories import REPOSITORIES

WITH_OTHERS = ("use_sliding_window", "attn_resolutions")
"""Entries that are read, and count where there is a window, or a level of such a resolution; see the tests of the parts."""


def readings() -> list[tuple[str, str]]:
    return [(repository, reading) for repository, (_, all_of_it) in REPOSITORIES.items() for reading in all_of_it.split()]


def layout_of(reading: str) -> tuple[type[Block], Layout]:
    name, _, layout_name = reading.partition(":")
    cls: Any = configurable.find(name)
    (layout,) = (layout for layout in cls.layouts if layout.name == layout_name)
    return cls, layout


def read(reading: str, config: Mapping[str, Any]) -> tuple[type[Block], dict[str, Any]]:
    cls, layout = layout_of(reading)
    with torch.device("meta"):
        return cls, layout.arguments(config)


@pytest.mark.parametrize(("repository", "reading"), readings())
def test_what_stands_in_a_published_config_is_known(repository: str, reading: str) -> None:
    config = REPOSITORIES[repository][0]
    cls, arguments = read(reading, config)
    assert set(arguments) <= set(inspect.signature(cls).parameters)
    with pytest.raises(ValueError, match="an_entry_of_tomorrow"):
        read(reading, {**config, "an_entry_of_tomorrow": 1})


@pytest.mark.parametrize(("repository", "reading"), readings())
def test_no_entry_of_a_published_config_is_passed_over(repository: str, reading: str) -> None:
    config, (_, layout) = REPOSITORIES[repository][0], layout_of(reading)
    with torch.device("meta"):
        arguments = layout.arguments(config)
        silent = [
            ".".join(path)
            for path, value in leaves(config)
            if path[-1] not in WITH_OTHERS
            and not is_harmless(".".join(path), value, layout.harmless)
            and not matters(layout, config, arguments, path, value)
        ]
    assert not silent


@pytest.mark.parametrize(
    ("repository", "reading", "changes", "message"),
    [
        ("Qwen/Qwen2.5-7B", "Decoder:qwen2", {"use_mrope": True}, "use_mrope is True"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", "Decoder:qwen2", {}, "dual_chunk_attention_config.chunk_size"),
        ("microsoft/Phi-4-mini-instruct", "LMHead:llama-tied", {"lm_head_bias": True}, "lm_head_bias is True"),
        ("microsoft/Phi-4-mini-instruct", "Decoder:phi3", {}, "partial_rotary_factor is 0.75"),
        ("facebook/chameleon-7b", "ChameleonTrunk:chameleon", {"qk_layernorm": False}, "qk_layernorm is False"),
        ("Paranioar/NEO1_0-2B-SFT", "NEOPatchEmbedding:neo", {"patch_size": 14}, "patch_size is 14"),
        ("Paranioar/NEO1_0-2B-SFT", "TextEmbedding:neo", {"model_type": "internvl_chat"}, "model_type is 'internvl_chat'"),
        ("OpenGVLab/Mono-InternVL-2B", "LMHead:mono-internvl", {"model_type": "neo_chat"}, "model_type is 'neo_chat'"),
        ("BAAI/Emu2", "Emu2Latents:emu2-hub", {"vision_config": {"intermediate_size": 9}}, "intermediate_size is 9"),
        ("BAAI/Emu2", "Emu2Latents:emu2-hub", {"vision_config": {"layer_norm_eps": 1e-5}}, "layer_norm_eps is 1e-05"),
    ],
)
def test_what_a_part_does_not_do_is_refused(repository: str, reading: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(reading, {**REPOSITORIES[repository][0], **changes})


@pytest.mark.parametrize("model_args", [{"global_pool": "avg"}, {"global_pool": "of tomorrow"}, {"in_chans": 1}])
def test_pooling_that_moves_a_norm_is_refused(model_args: dict[str, Any]) -> None:
    """timm's vision transformers with the mean of all patches have their final norm after it."""
    (layout,) = mmblocks.encoders.TimmEncoder.layouts
    (name,) = model_args
    with pytest.raises(ValueError, match=name):
        layout.arguments({"architecture": "test_vit", "model_args": model_args})
