"""AIM's pruning: how important tokens are, and which stay."""

import pytest
import torch

from mmblocks.layers.reduction.token_reduction import attention_importance, falling_rate, keep_important
from tests.parity.cases import Case


def run(case: Case) -> None:
    config = case.config
    assert config["d"] == 0  # published code never sets another
    rates = [float(rate) for rate in config["retain_rate"]]
    if len(rates) == 28:  # the published schedule is that of the published model
        assert rates == pytest.approx([falling_rate(layer) for layer in range(28)])

    logits = case.io["in.attn_logits"]
    importance = attention_importance(logits, temperature=config["tau_imp"], num_steps=config["iters"])
    case.check("out.importance", importance)
    start, stop = config["visual_span"]
    visual = torch.zeros(importance.shape, dtype=torch.bool)
    visual[:, start:stop] = True
    case.check("out.keep_mask", keep_important(importance, visual, rates[config["layer_idx"]]))
