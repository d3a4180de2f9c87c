"""Emu's Causal Former: every layer, the projection, and the shared position bias."""

from itertools import combinations

import torch
from torch import Tensor

from mmblocks.connectors.causal_former import CausalFormer
from tests.parity.cases import Case, ramp_mean
from tests.parity.tokenizers.seed_tokenizer import check_gradients, nearest

MANIFESTS = {name: [(CausalFormer, "emu")] for name in ("emu1_cformer", "emu1_pretrain_multimodal_encoder", "emu1_instruct_lora")}


def run(case: Case) -> None:
    config = {name: value for name, value in case.config.items() if name != "real_t5_config"}  # a note on Emu's own stack
    former = case.load(CausalFormer, config, layout="causal_former").train()  # the method has nothing random in it
    features = case.io["in.image_embeds"].requires_grad_()
    results = outputs(former, features)
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
    if not case.named("loss.") and not case.named("grad."):
        return
    # Cases with gradients start from the mean of one or several outputs, plain or times a ramp, or of their squares.
    starts = [
        [start(value) for value in results.values()] for start in (ramp_mean, Tensor.mean, Tensor.sum, mean_square, sum_square)
    ]
    totals = [sum(chosen) for values in starts for count in range(1, len(values) + 1) for chosen in combinations(values, count)]
    for name, wanted in case.named("loss.").items():
        totals = [nearest(wanted, totals)]
        case.check(f"loss.{name}", totals[0])
    check_gradients(case, former, "causal_former", totals, image_embeds=features)


def outputs(former: CausalFormer, features: Tensor) -> dict[str, Tensor]:
    states = former.states(features)
    as_grid = former(features.unflatten(1, (1, -1)))
    tokens = former(features)
    torch.testing.assert_close(tokens, as_grid)
    return {
        "tokens": tokens,
        "last_hidden": former.norm(states[-1]),
        "position_bias": former.position_bias(),
        **{f"block_{number}": state for number, state in enumerate(states)},
    }


def mean_square(value: Tensor) -> Tensor:
    return value.square().mean()


def sum_square(value: Tensor) -> Tensor:
    return value.square().sum()
