"""Rotary angles of long rows, against their definitions and transformers' own."""

import math

import pytest
import torch

from mmblocks.layers.attention.rotary_scaling import check_rotary_scaling, scale_rotary, scaled_rotary_table
from mmblocks.sequence.positions import rotary_table


def test_linear_scaling_divides_positions() -> None:
    positions, theta = scale_rotary(torch.tensor([[0, 3]]), 8, 10000.0, {"type": "linear", "factor": 2.0})
    assert positions.tolist() == [[0.0, 1.5]]
    assert theta == 10000.0


def test_dynamic_scaling_acts_on_the_rows_that_are_too_long_only() -> None:
    positions = torch.stack([torch.arange(16), torch.arange(16).clamp(max=7)])
    _, theta = scale_rotary(positions, 8, 10000.0, {"type": "dynamic", "factor": 2.0, "max_position": 8})
    assert theta[0].item() == pytest.approx(10000.0 * 3.0 ** (8 / 6))
    assert theta[1].item() == 10000.0
    assert rotary_table(positions, 8, theta).cos.shape == (2, 16, 4)


@pytest.mark.parametrize(
    "scaling", [{"type": "yarn", "factor": 2.0}, {"type": "linear"}, {"type": "dynamic", "factor": 2.0}, {"type": "ntk"}]
)
def test_scaling_that_cannot_be_followed_is_refused(scaling) -> None:
    with pytest.raises(ValueError, match="rope_scaling is"):
        check_rotary_scaling(scaling)


def test_scaling_factor_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor 0\.5"):
        check_rotary_scaling({"type": "linear", "factor": 0.5})


def test_frequency_factors_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="accepted: a high_freq_factor above"):
        check_rotary_scaling({"type": "llama3", "factor": 2.0, "max_position": 8, "low_freq_factor": 4, "high_freq_factor": 4})


def test_longrope_looks_at_each_rows_own_length() -> None:
    scaling = {"type": "longrope", "factor": 4.0, "max_position": 8, "short_factor": (1.0, 2.0), "long_factor": (3.0, 4.0)}
    check_rotary_scaling(scaling)
    both = scaled_rotary_table(torch.stack([torch.arange(8), torch.arange(8) + 1]), 4, 100.0, scaling, last=3)
    growth = math.sqrt(1 + math.log(4) / math.log(8))
    assert both.cos.shape == (2, 3, 2)
    assert both.sin[0, -1].tolist() == pytest.approx([growth * math.sin(7), growth * math.sin(7 / 10 / 2)], abs=1e-5)
    assert both.sin[1, -1].tolist() == pytest.approx([growth * math.sin(8 / 3), growth * math.sin(8 / 10 / 4)], abs=1e-5)


PUBLISHED = {
    "llama 3.1": (
        128,
        500000.0,
        {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "max_position": 8192},
    ),
    "qwen 2.5": (128, 1000000.0, {"type": "yarn", "factor": 4.0, "max_position": 32768}),
    "one pair": (2, 10000.0, {"type": "yarn", "factor": 4.0, "max_position": 2048, "beta_fast": 1, "beta_slow": 1}),
    "no steps": (
        64,
        10000.0,
        {"type": "yarn", "factor": 40.0, "max_position": 4096, "truncate": False, "attention_factor": 1.2, "beta_fast": 16},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_equal_those_of_transformers(name) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    dim, theta, scaling = PUBLISHED[name]
    check_rotary_scaling(scaling)
    entries = {**scaling, "rope_type": scaling["type"], "original_max_position_embeddings": scaling["max_position"]}
    config = LlamaConfig(head_dim=dim, rope_parameters={"rope_theta": theta, **entries})
    frequency, growth = ROPE_INIT_FUNCTIONS[scaling["type"]](config, device="cpu")
    table = scaled_rotary_table(torch.arange(50)[None], dim, theta, scaling, last=20)
    angle = torch.arange(30, 50)[:, None] * frequency
    torch.testing.assert_close(table.cos[0], growth * angle.cos(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.sin[0], growth * angle.sin(), atol=1e-5, rtol=1e-5)
