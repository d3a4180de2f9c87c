"""The benchmark of the ops at the smallest sizes: every way to the same numbers, and a floor of the time."""

from argparse import Namespace
from collections.abc import Callable

import pytest
import torch

from benchmarks import ops
from benchmarks.measure import Comparison, Work, ceilings, described, measure
from benchmarks.ways import compare

OPTIONS = Namespace(device="cpu", repeats=1)

SMALL: dict[str, Callable[[], Comparison]] = {
    "linear_ce": lambda: ops.linear_ce(9, 8, 50, torch.float32, "cpu"),
    "linear_ce_bfloat16": lambda: ops.linear_ce(9, 8, 50, torch.bfloat16, "cpu"),
    "linear_ce_evaluation": lambda: ops.linear_ce(9, 8, 50, torch.float32, "cpu", learns=False),
    "nearest": lambda: ops.nearest(9, 50, 4, "cpu"),
    "lfq": lambda: ops.lfq(9, 6, "cpu"),
    "routed": lambda: ops.routed(64, 8, 6, torch.float32, "cpu"),
    "norm": lambda: ops.norm((1, 32, 3, 5), torch.float32, "cpu"),
    "attention": lambda: ops.attention(1100, 2, 8, torch.float32, "cpu"),
    "block_mask": lambda: ops.block_mask(256, "cpu"),
    "graphs": lambda: ops.graphs(3, 8, 1, torch.float32, "cpu"),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_comparison_has_times_and_differences(name: str) -> None:
    figures = measure(SMALL[name](), OPTIONS)
    assert len(figures["wall_seconds"]) >= 2 and figures["difference"]
    assert figures.get("floor_seconds", 1) > 0
    assert figures["title"] in described(figures)


@pytest.mark.unchecked
def test_what_is_left_to_the_compiler_becomes_one_kernel() -> None:
    figures = measure(ops.left_to_the_compiler(16, torch.float32)["adaln"]("cpu"), OPTIONS)
    assert figures["difference"].endswith("; compiled to 1 kernel(s)")


def test_the_floor_is_the_slower_of_products_and_memory() -> None:
    best = ceilings("cpu", torch.float32)
    sides = {"ours": lambda: lambda: None, "rival": lambda: lambda: None}
    for work, wanted in ((Work(1e9, 1), 1e9 / best["flops_per_second"]), (Work(1, 1e9), 1e9 / best["bytes_per_second"])):
        figures = measure(Comparison("nothing", sides, lambda: "none", work=work), OPTIONS)
        assert figures["floor_seconds"] == wanted


def test_wrong_numbers_end_it() -> None:
    ways = {"ours": lambda x: x + 1, "plain PyTorch": lambda x: x}
    with pytest.raises(SystemExit, match=r"ours is off by .* plain PyTorch by 0"):
        measure(compare("a sum", lambda: (torch.ones(3),), ways, exact=lambda x: x), OPTIONS)
