"""What holds for all ops alike: the same bits in each run, nothing read that nobody wrote, and no look at values on a GPU."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from mmblocks.layers.attention.attend import interval_block_mask
from mmblocks.ops.group_norm_silu import group_norm_silu
from mmblocks.ops.lfq_entropy import lfq_entropy
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_and_choices, linear_log_prob
from mmblocks.ops.linear_sigmoid_loss import linear_sigmoid_loss
from mmblocks.ops.nearest_code import code_stats, nearest_code
from mmblocks.ops.routed_linear import group_rows, routed_linear
from mmblocks.sequence.masks import Intervals

ROWS, DIM, MANY = 37, 8, 300


def target(x: Tensor) -> Tensor:
    return torch.arange(ROWS, device=x.device) * 7 % MANY


def routed(x: Tensor, weight: Tensor) -> Tensor:
    return routed_linear(x, group_rows(target(x).sort().values % 2, 2), [weight[:5], weight[5:10]])


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean loss": lambda x, w: linear_cross_entropy(x, w, target(x), z_loss=0.1, chunk_bytes=4 * MANY * 5),
    "losses": lambda x, w: linear_cross_entropy(x, w, target(x), label_smoothing=0.1, reduction="none", chunk_bytes=4 * MANY * 5),
    "log probabilities": lambda x, w: linear_log_prob(x, w, target(x), row_weight=x[:, 0].detach(), chunk_bytes=4 * MANY * 5),
    "loss and choices": lambda x, w: linear_cross_entropy_and_choices(x, w, target(x), chunk_bytes=4 * MANY * 5).loss,
    "sigmoid loss": lambda x, w: linear_sigmoid_loss(x, w, target(x), chunk_bytes=4 * MANY * 5),
    "entropies": lambda x, w: torch.stack(lfq_entropy(x)),
    "norm": lambda x, w: group_norm_silu(x.T[None], 2),
}
ON_THE_HOST = {"routed": routed}
"""Sizes of groups are read once per batch, where the table is still on the host."""

WITHOUT_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nearest code": nearest_code,
    "statistics": lambda x, w: torch.cat([part.flatten() for part in code_stats(x, target(x), MANY)]),
    "choices": lambda x, w: linear_cross_entropy_and_choices(x, w, target(x)).choices,
}


def run(op: Callable[[Tensor, Tensor], Tensor], device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The result and, where there are any, the gradients."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, DIM, generator=generator).to(device, dtype).requires_grad_() for rows in (ROWS, MANY))
    out = op(x, weight)
    if not out.requires_grad:
        return [out]
    later = torch.linspace(1, 2, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    gradients = torch.autograd.grad(out, (x, weight), later, allow_unused=True)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="not with a GPU")
def test_memory_is_poisoned() -> None:
    assert torch.empty(3).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*OPS, *ON_THE_HOST, *WITHOUT_GRADIENTS])
def test_two_runs_give_the_same_bits_and_no_value_is_read_before_it_is_written(name, dtype) -> None:
    op = {**OPS, **ON_THE_HOST, **WITHOUT_GRADIENTS}[name]
    first, second = run(op, dtype=dtype), run(op, dtype=dtype)
    assert len(first) >= 2 or name in WITHOUT_GRADIENTS
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()  # memory that nobody wrote holds NaN here


@pytest.fixture
def meta(monkeypatch) -> str:
    """A device without values in place of a GPU: to ask it for one raises. It knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(3, device="meta").sum().item()
    return "meta"


@pytest.mark.parametrize("name", [*OPS, *WITHOUT_GRADIENTS])
def test_nothing_waits_for_a_gpu(name, meta) -> None:
    found = run({**OPS, **WITHOUT_GRADIENTS}[name], device=meta)
    assert {value.device.type for value in found} == {"meta"}


def test_a_block_mask_waits_for_nothing(meta) -> None:
    end = torch.zeros(1, 300, dtype=torch.long, device=meta)
    assert interval_block_mask(Intervals(end, end), 300).kv_indices.device.type == "meta"


def test_routed_rows_by_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    groups = group_rows(torch.tensor([0, 0, 1, 1, 1]), 2)
    torch.autograd.gradcheck(lambda x, *weights: routed_linear(x, groups, list(weights)), (x, first, second))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at it
def test_the_node_of_a_compiled_graph_is_a_proper_op() -> None:
    from mmblocks.ops.routed_linear import reference

    x = torch.randn(5, 3, requires_grad=True)
    weights, biases = ([torch.randn(*shape, requires_grad=True) for _ in range(2)] for shape in ((4, 3), (4,)))
    arguments = (x, torch.tensor([2, 2, 5]), weights, biases, [0, reference.NO_WEIGHT, 1])
    found = torch.library.opcheck(reference._op, arguments)
    assert set(found.values()) == {"SUCCESS"}
