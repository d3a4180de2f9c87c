"""A linear map per group of rows, in plain PyTorch: each group of the sorted rows is one matrix product.

Shapes: N rows, G groups, I and O widths of input and output.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from mmblocks.support.checks import check_range

NO_WEIGHT = -1
"""In place of a weight's number, for a group that has none."""


class RowGroups(NamedTuple):
    """Which rows belong together.

    Attributes:
        group: (N,) the group of each sorted row, rising.
        order: (N,) which row comes where: those of group 0 first, in their old order.
        place: (N,) the way back: where each row has gone.
        ends: (G,) after which sorted row each group ends.
        sizes: rows of each group where they are known on the host; None inside a compiled graph.
    """

    group: Tensor
    order: Tensor
    place: Tensor
    ends: Tensor
    sizes: tuple[int, ...] | None

    @property
    def in_order(self) -> bool:
        """Whether all rows are known to be of one group, so that sorting changes nothing."""
        return self.sizes is not None and sum(size > 0 for size in self.sizes) <= 1

    def sort(self, x: Tensor) -> Tensor:
        """Rows (N, ...) in the order of their groups."""
        return x if self.in_order else x[self.order]

    def restore(self, x: Tensor) -> Tensor:
        """Sorted rows (N, ...) in their old order."""
        return x if self.in_order else x[self.place]


def group_rows(group: Tensor, num_groups: int) -> RowGroups:
    """Sorts rows by group. Once per batch: it reads the sizes, for which a GPU has to be waited for, except in a compiled graph.

    Args:
        group: (N,) int64 in [0, num_groups).
        num_groups: G.

    Raises:
        ValueError: another shape, or a group out of range (checked on CPU, outside compiled graphs).
    """
    if group.ndim != 1:
        raise ValueError(f"group has shape {tuple(group.shape)}; accepted: (N,), a number for each row")
    check_range("group", group, num_groups)
    ordered, order = torch.sort(group, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = (ordered == torch.arange(num_groups, device=group.device)[:, None]).sum(dim=1)
    return RowGroups(ordered, order, place, counts.cumsum(0), None if torch.compiler.is_compiling() else tuple(counts.tolist()))


def routed_linear(
    x: Tensor, groups: RowGroups, weights: Sequence[Tensor | None], biases: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Multiplies each row by its group's weight: the work is that of one linear map, however many groups there are.

    Args:
        x: (N, I), sorted by group.
        groups: from ``group_rows``.
        weights: (O, I) for each group, or None for a group whose rows become zeros; not None for all.
        biases: (O,) for each group that has a weight, and None for the others; or None for no biases.

    Returns:
        (N, O), sorted by group. While gradients are recorded every weight gets one, zeros where its group has no rows, so that
        several machines, each with rows of its own, have the same gradients to add up.

    Raises:
        ValueError: another number of weights or biases than of groups, or no weight.
    """
    num_groups = len(groups.ends)
    biases = [None] * num_groups if biases is None else list(biases)
    if len(weights) != num_groups or len(biases) != num_groups or all(weight is None for weight in weights):
        raise ValueError(f"{len(weights)} weights and {len(biases)} biases; accepted: one of each for each of {num_groups} groups")
    if groups.sizes is None:
        return _in_graph(x, groups.ends, weights, biases)
    if groups.in_order and not torch.is_grad_enabled():
        number = max(range(num_groups), key=groups.sizes.__getitem__)
        return _product(x, weights, biases, number)
    return torch.cat([_product(rows, weights, biases, number) for number, rows in enumerate(x.split(groups.sizes))])


def _product(x: Tensor, weights: Sequence[Tensor | None], biases: Sequence[Tensor | None], number: int) -> Tensor:
    """One group's rows. Those of a group without weight are zeros of the dtype that the others' products have."""
    weight = weights[number]
    if weight is not None:
        return linear(x, weight, biases[number])
    known = next(weight for weight in weights if weight is not None)
    return linear(x[:0], known.detach()).new_zeros(len(x), known.shape[0])


def _in_graph(x: Tensor, ends: Tensor, weights: Sequence[Tensor | None], biases: Sequence[Tensor | None]) -> Tensor:
    """As one node of a compiled graph, which cannot hold products whose sizes depend on values."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        weights = [weight if weight is None else weight.to(dtype) for weight in weights]
        biases = [bias if bias is None else bias.to(dtype) for bias in biases]
    present = [number for number, weight in enumerate(weights) if weight is not None]
    which = [present.index(number) if number in present else NO_WEIGHT for number in range(len(weights))]
    return _op(x, ends, [w for w in weights if w is not None], [b for b in biases if b is not None], which)


def _slices(ends: Tensor) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise([0, *ends.tolist()])]


@torch.library.custom_op("mmblocks::routed_linear", mutates_args=())
def _op(x: Tensor, ends: Tensor, weights: list[Tensor], biases: list[Tensor], which: list[int]) -> Tensor:
    out = x.new_zeros(len(x), weights[0].shape[0])
    for number, rows in zip(which, _slices(ends), strict=True):
        if number != NO_WEIGHT:
            out[rows] = linear(x[rows], weights[number], biases[number] if biases else None)
    return out


@_op.register_fake
def _(x: Tensor, ends: Tensor, weights: list[Tensor], biases: list[Tensor], which: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[0])


@torch.library.custom_op("mmblocks::routed_linear_backward", mutates_args=())
def _op_backward(
    grad: Tensor, x: Tensor, ends: Tensor, weights: list[Tensor], num_biases: int, which: list[int], wanted: list[int]
) -> list[Tensor]:
    """Gradients of x, the weights and the biases, in this order; empty ones for those not ``wanted``."""
    wants_x, wants_weight, wants_bias = wanted[0], wanted[1 : 1 + len(weights)], wanted[1 + len(weights) :]
    grad_x = torch.zeros_like(x) if wants_x else x.new_empty(0)
    grad_weights = [torch.zeros_like(w) if want else w.new_empty(0) for w, want in zip(weights, wants_weight, strict=True)]
    grad_biases = [w.new_zeros(w.shape[0]) if want else w.new_empty(0) for w, want in zip(weights, wants_bias, strict=False)]
    for number, rows in zip(which, _slices(ends), strict=True):
        if number == NO_WEIGHT:
            continue
        if wants_x:
            grad_x[rows] = grad[rows] @ weights[number]
        if wants_weight[number]:
            grad_weights[number] += grad[rows].T @ x[rows]
        if num_biases and wants_bias[number]:
            grad_biases[number] += grad[rows].sum(dim=0)
    return [grad_x, *grad_weights, *grad_biases]


@_op_backward.register_fake
def _(
    grad: Tensor, x: Tensor, ends: Tensor, weights: list[Tensor], num_biases: int, which: list[int], wanted: list[int]
) -> list[Tensor]:
    made = [torch.empty_like(x), *(torch.empty_like(w) for w in weights), *(w.new_empty(w.shape[0]) for w in weights[:num_biases])]
    return [tensor if want else tensor.new_empty(0) for tensor, want in zip(made, wanted, strict=True)]


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ends, weights, biases, which = inputs
    ctx.save_for_backward(x, ends, *weights)
    ctx.num_biases, ctx.which = len(biases), which


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, ends, *weights = ctx.saved_tensors
    wants_x, _, wants_weights, wants_biases, _ = ctx.needs_input_grad
    wanted = [int(want) for want in (wants_x, *wants_weights, *wants_biases)]
    made = _op_backward(grad, x, ends, weights, ctx.num_biases, ctx.which, wanted)
    found = [tensor if want else None for tensor, want in zip(made, wanted, strict=True)]
    return found[0], None, found[1 : 1 + len(weights)], found[1 + len(weights) :], None


_op.register_autograd(_backward, setup_context=_setup)
