"""Configs of heads: each entry is followed, refused or known to change nothing, and what is written loads again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks import Block
from mmblocks.heads.mar import MARDiffusionHead
from mmblocks.heads.nova import NOVAFlowHead
from mmblocks.heads.orthus import OrthusDiffusionHead
from mmblocks.heads.regression import RegressionHead

MAR: dict[str, Any] = {"dim": 6, "token_dim": 3, "width": 8, "num_blocks": 1}
CASES: list[tuple[type[Block], str, dict[str, Any]]] = [
    *((MARDiffusionHead, layout, {**MAR, "steps": 25, "repeats": 2}) for layout in ("diffloss", "mar")),
    *((MARDiffusionHead, layout, {**MAR, "steps": steps}) for layout in ("diffloss", "mar") for steps in ("ddim25", (10, 15), "")),
    (NOVAFlowHead, "nova", {"dim": 6, "width": 8, "num_blocks": 1}),
    (
        NOVAFlowHead,
        "nova",
        {
            "dim": 6,
            "width": 8,
            "num_blocks": 1,
            "channels": 3,
            "patch_size": 1,
            "shift": 2.0,
            "num_steps": 7,
            "guidance_below": 0.2,
            "guidance_renorm": 0.7,
            "repeats": 4,
        },
    ),
    (OrthusDiffusionHead, "orthus", {"dim": 6, "token_dim": 3, "width": 8, "num_blocks": 1, "repeats": 2, "num_steps": 7}),
    (RegressionHead, "emu", {"dim": 6, "target_dim": 6}),
    (RegressionHead, "emu2", {"dim": 6, "target_dim": 4}),
    (RegressionHead, "emu2-hub", {"dim": 6, "target_dim": 4}),
]


@pytest.mark.parametrize(("cls", "layout", "arguments"), CASES)
def test_round_trip(tmp_path: Path, cls: type[Block], layout: str, arguments: dict[str, Any]) -> None:
    head = cls(**arguments)
    head.to_upstream(tmp_path, layout=layout)

    again = cls.from_pretrained(tmp_path, layout=layout)

    assert again.config == head.config
    torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("head", "layout"),
    [
        (lambda: OrthusDiffusionHead(dim=6, token_dim=3, width=8, num_blocks=1, scale=1.0), "orthus"),
        (lambda: RegressionHead(dim=6, target_dim=4), "emu"),
        (lambda: RegressionHead(dim=6, target_dim=4, distance="cosine"), "emu2"),
    ],
)
def test_what_published_files_cannot_say(tmp_path: Path, head: Any, layout: str) -> None:
    with pytest.raises(ValueError, match=r"(scale|target_dim|distance) is .*; accepted: "):
        head().to_upstream(tmp_path / "there", layout=layout)
    assert not (tmp_path / "there").exists()


DIFF_LOSS = {"z_channels": 6, "target_channels": 3, "width": 8, "depth": 1}
WHOLE = {"decoder_embed_dim": 6, "vae_embed_dim": 3, "diffloss_w": 8, "diffloss_d": 1}


@pytest.mark.parametrize(
    ("cls", "layout", "config", "wanted"),
    [
        (MARDiffusionHead, "diffloss", DIFF_LOSS, {**MAR, "steps": 100, "repeats": 1}),
        (MARDiffusionHead, "diffloss", {**DIFF_LOSS, "num_sampling_steps": "10,15"}, {**MAR, "steps": (10, 15), "repeats": 1}),
        (MARDiffusionHead, "mar", {**WHOLE, "label_drop_prob": 0.2}, {**MAR, "steps": 100, "repeats": 4}),
        (
            MARDiffusionHead,
            "mar",
            {"function": "mar_large", "diffloss_w": 8, "diffloss_d": 1},
            {**MAR, "dim": 1024, "token_dim": 16},
        ),
        (NOVAFlowHead, "nova", {"cond_dim": 6, "embed_dim": 8, "depth": 1, "gs": 3.0}, {"dim": 6, "shift": 1.0, "repeats": 1}),
        (
            OrthusDiffusionHead,
            "orthus",
            {"model_type": "chameleon", "architectures": ["OrthusForConditionalGeneration"], "hidden_size": 6, "swin_norm": True},
            {"dim": 6, "width": 1536},
        ),
        (
            RegressionHead,
            "emu2",
            {"llama": {"hidden_size": 6, "vocab_size": 9}, "vision_cfg": {"width": 4}},
            {"dim": 6, "target_dim": 4},
        ),
        (RegressionHead, "emu2-hub", {"hidden_size": 6, "d_model": 4, "vision_config": {"layers": 3}}, {"dim": 6, "target_dim": 4}),
        (RegressionHead, "emu2-hub", {"hidden_size": 6, "vision_config": {"width": 4}}, {"dim": 6, "target_dim": 4}),
    ],
)
def test_entries_that_are_read(cls: type[Block], layout: str, config: dict[str, Any], wanted: dict[str, Any]) -> None:
    (table,) = (table for table in cls.layouts if table.name == layout)
    arguments = table.arguments(config)
    assert {name: arguments[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("cls", "layout", "config", "message"),
    [
        (MARDiffusionHead, "diffloss", {**DIFF_LOSS, "learn_sigma": False}, "learn_sigma"),
        (MARDiffusionHead, "diffloss", {**DIFF_LOSS, **WHOLE}, "decoder_embed_dim"),
        (MARDiffusionHead, "mar", {"function": "mar_tiny", "diffloss_w": 8, "diffloss_d": 1}, "function is 'mar_tiny'; accepted"),
        (MARDiffusionHead, "mar", {**WHOLE, "vae_dim": 3}, "vae_dim"),
        (NOVAFlowHead, "nova", {"cond_dim": 6, "embed_dim": 8, "depth": 1, "double_cond": True}, "double_cond"),
        (OrthusDiffusionHead, "orthus", {"model_type": "llama"}, "model_type is 'llama'; accepted: orthus, chameleon"),
        (OrthusDiffusionHead, "orthus", {"beta_start": 0.1}, "beta_start"),
        (RegressionHead, "emu", {"hidden_size": 6}, "hidden_size"),
        (RegressionHead, "emu2", {"regress_bias": True}, "regress_bias"),
        (RegressionHead, "emu2-hub", {"model_type": "llama"}, "model_type is 'llama'"),
    ],
)
def test_entries_that_are_refused(cls: type[Block], layout: str, config: dict[str, Any], message: str) -> None:
    (table,) = (table for table in cls.layouts if table.name == layout)
    with pytest.raises(ValueError, match=message):
        table.arguments(config)
