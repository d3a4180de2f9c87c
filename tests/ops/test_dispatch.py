"""Which implementation runs, and why."""

import logging

import pytest
import torch

from mmblocks import ops
from mmblocks.ops import dispatch
from mmblocks.ops.group_norm_silu import group_norm_silu
from mmblocks.ops.nearest_code import nearest_code


def test_on_a_cpu_plain_torch_runs_and_the_reason_is_given() -> None:
    choice = ops.which("nearest_code", torch.zeros(2, 4), torch.zeros(3, 4))
    assert choice.impl == "eager"
    assert "cpu" in choice.reason or "triton" in choice.reason
    assert ops.which("nearest_code", torch.zeros(2, 4), torch.zeros(3, 4), impl="eager") == ("eager", "asked for")


def test_a_kernel_that_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="the Triton kernel of nearest_code cannot run: t"):
        nearest_code(torch.zeros(2, 4), torch.zeros(3, 4), impl="triton")
    with ops.using("triton"), pytest.raises(RuntimeError, match="cannot run"):
        group_norm_silu(torch.zeros(1, 4, 2, 2), 2)
    assert group_norm_silu(torch.zeros(1, 4, 2, 2), 2).shape == (1, 4, 2, 2)  # outside, the choice is free again


def test_an_old_triton_or_none_is_named(monkeypatch) -> None:
    monkeypatch.setattr(dispatch.importlib.metadata, "version", lambda name: "3.1.0")
    assert dispatch._find_triton() == "triton is 3.1.0; it takes 3.6 or newer"


def test_the_reason_is_said_once_at_debug_level(caplog, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    with caplog.at_level(logging.DEBUG, logger="mmblocks.ops.dispatch"):
        for _ in range(2):
            nearest_code(torch.zeros(2, 4), torch.zeros(3, 4))
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert caplog.records[0].message.startswith("nearest_code runs as eager")


def test_ops_without_kernels_are_named() -> None:
    with pytest.raises(ValueError, match=r"op is 'soup'; accepted: .*nearest_code"):
        ops.which("soup")


@pytest.mark.unchecked
def test_unknown_implementations_are_named() -> None:
    with pytest.raises(ValueError, match="impl is 'cuda'; accepted: auto, eager, triton"):
        nearest_code(torch.zeros(2, 4), torch.zeros(3, 4), impl="cuda")
