"""Masks of Transfusion, NOVA/URSA and VAR as instances of the one visibility rule."""

import torch
from torch import Tensor

from mmblocks import TokenTable
from mmblocks.sequence.masks import densify, lower, visible
from mmblocks.sequence.positions import by_order
from tests.parity.cases import Case


def run(case: Case) -> None:
    {"transfusion": check_transfusion, "segments": check_segments, "scales": check_scales}[kind_of(case)](case)


def kind_of(case: Case) -> str:
    if "segments" in case.config:
        return "segments"
    return "transfusion" if case.named("in.modalities") else "scales"


def table_with(order: Tensor) -> TokenTable:
    return TokenTable.text(*order.shape)._replace(order=order)


def check_mask(case: Case, name: str, table: TokenTable, wanted_rank: int) -> None:
    """The rule, and its lowered form."""
    batch, length = table.shape
    for mask in (visible(table), densify(lower(table), length, length, "cpu").expand(batch, -1, -1)):
        case.check(name, mask if wanted_rank == 3 else mask[0])


def check_transfusion(case: Case) -> None:
    """Images (offset, length) inside text: each is one step."""
    for number, length in enumerate(case.config["seq_lens"]):
        modalities = case.io[f"in.modalities{number}"]
        begins_step = torch.ones(len(modalities), length, dtype=torch.bool)
        for row, images in enumerate(modalities.tolist()):
            for _, offset, size in images:
                begins_step[row, offset + 1 : offset + size] = False
        table = table_with(begins_step.long().cumsum(1) - 1)
        check_mask(case, f"out.mask{number}", table, 3)
        if f"out.rotary_pos{number}" in case.io:
            case.check(f"out.rotary_pos{number}", by_order(table))


def check_segments(case: Case) -> None:
    """Segments that are one step or causal. Upstream's segment 0 is always one step: 0 * -1 == 0.

    Without flags all are one step; of several, a missing one is -1, causal.
    """
    for number, segment in enumerate(case.config["segments"]):
        sizes, flags = segment["lens"], segment.get("flags")
        sizes = sizes[1:] if sizes[0] == 0 else sizes  # upstream takes a leading 0 for the first boundary
        flags = [1] * len(sizes) if flags is None else [*flags, *[-1] * (len(sizes) - len(flags))]
        check_mask(case, f"out.mask{number}", table_with(torch.tensor([order_of(sizes, flags)])), 2)


def order_of(sizes: list[int], flags: list[int]) -> list[int]:
    """One number for all tokens of a segment that is one step, one for each token of one that is causal (-1, or 0)."""
    assert set(flags) <= {-1, 0, 1}, "upstream multiplies a segment's number by its flag: others make it see a later segment"
    order: list[int] = []
    for index, (size, flag) in enumerate(zip(sizes, flags, strict=True)):
        first = order[-1] + 1 if order else 0
        one_step = flag == 1 or index == 0
        order += [first] * size if one_step else list(range(first, first + size))
    return order


def check_scales(case: Case) -> None:
    """Next-scale prediction: the order of a token is its scale."""
    for name in case.named("out."):
        sides = [int(side) for side in name.removeprefix("var_p").split("_")]
        order = torch.cat([torch.full((side * side,), scale) for scale, side in enumerate(sides)])
        check_mask(case, f"out.{name}", table_with(order[None]), 2)
