"""AIM's merging of tokens, step after step."""

from mmblocks.layers.reduction.token_reduction import merge_similar
from tests.parity.cases import Case


def run(case: Case) -> None:
    x = case.io["in.x"]
    for step, num_merged in enumerate(case.config["r_per_step"]):
        x = merge_similar(x, num_merged, in_order=False).x
        case.check(f"out.step_{step}", x)
