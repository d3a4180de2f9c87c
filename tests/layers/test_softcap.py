"""Attention with a soft cap against its formula: every form of a mask, gradients, hooks, heads in groups."""

import pytest
import torch
from torch import Tensor

from mmblocks.layers.attention.attend import Blocks, Observed, attend, interval_block_mask, interval_spans, prepare
from mmblocks.sequence.masks import Causal, Dense, densify, intervals, visible
from tests.shared.random_tables import random_table

LENGTH = 20


def formula(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float | None, softcap: float) -> Tensor:
    """softmax(softcap * tanh(scale * q k / softcap)) v, over what is seen, head by head in float64."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = query.double(), key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = (softcap * (scores / softcap).tanh()).exp() * seen[:, None]
    return weights @ value / weights.sum(-1, keepdim=True)


def tensors(seed: int, num_kv_heads: int, num_queries: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, num_queries, 8), (num_kv_heads, LENGTH, 8), (num_kv_heads, LENGTH, 6))
    return [(3 * torch.randn(3, *size, generator=generator)).requires_grad_() for size in sizes]


def forms(seed: int) -> dict[str, tuple[object, Tensor]]:
    """Each form that ``attend`` reads, and what is seen under it."""
    table = random_table(torch.Generator().manual_seed(seed), length=LENGTH)
    run, pairs = intervals(table), visible(table)
    causal = densify(Causal(), LENGTH, LENGTH, "cpu").expand(3, -1, -1)
    return {
        "causal": (Causal(), causal),
        "dense": (Dense(pairs), pairs),
        "dense for all rows": (Dense(causal[:1]), causal),
        "spans": (interval_spans(run), pairs),
        "prepared": (prepare(run, LENGTH, LENGTH, torch.device("cpu")), pairs),
        "observed weights": (Observed(Dense(pairs), weights=lambda weights: None), pairs),
        "observed heads": (Observed(Causal(), heads=lambda heads: None), causal),
        "observed spans": (Observed(interval_spans(run), heads=lambda heads: None), pairs),
    }


@pytest.mark.parametrize("name", forms(0))
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("scale", "softcap"), [(None, 1.5), (0.2, 4.0), (1.0, 50.0)])
def test_every_form_is_the_formula_with_its_gradients(name: str, num_kv_heads: int, scale, softcap: float) -> None:
    for seed in range(3):
        mask, seen = forms(seed)[name]
        found, wanted = [], []
        for results, function, what in ((found, attend, mask), (wanted, formula, seen)):
            inputs = tensors(seed, num_kv_heads)
            out = function(*inputs, what, scale, softcap)
            weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
            results += [out.float(), *torch.autograd.grad((out * weight).sum(), inputs)]
        for ours, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, right, atol=2e-5, rtol=2e-4)


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attentions_form() -> None:
    """Values alone: on a CPU it has no gradients."""
    for seed in range(3):
        table = random_table(torch.Generator().manual_seed(seed), length=LENGTH)
        mask = Blocks(interval_block_mask(intervals(table), LENGTH))
        inputs = [each.detach() for each in tensors(seed, 2)]
        wanted = formula(*inputs, visible(table), 0.3, 2.0)
        torch.testing.assert_close(attend(*inputs, mask, 0.3, 2.0), wanted.float(), atol=2e-5, rtol=2e-4)


def test_the_newest_token_sees_all() -> None:
    inputs = tensors(0, 2, num_queries=1)
    wanted = formula(*inputs, torch.ones(3, 1, LENGTH, dtype=torch.bool), None, 2.0)
    torch.testing.assert_close(attend(*inputs, Causal(), None, 2.0), wanted.float(), atol=2e-5, rtol=2e-4)


def test_hooks_read_and_change_weights_under_the_cap() -> None:
    inputs, seen = tensors(0, 2), forms(0)["dense"][1]
    weights: list[Tensor] = []
    attend(*inputs, Observed(Dense(seen), weights=weights.append), None, 2.0)
    identity = torch.eye(LENGTH).expand(3, 2, -1, -1)
    wanted = formula(inputs[0], inputs[1], identity, seen, None, 2.0)
    torch.testing.assert_close(weights[0], wanted.float(), atol=2e-5, rtol=2e-4)
    halved = attend(*inputs, Observed(Dense(seen), weights=lambda w: w / 2), None, 2.0)
    torch.testing.assert_close(2 * halved, attend(*inputs, Dense(seen), None, 2.0))


def test_a_wide_cap_is_none_and_what_sees_nothing_finds_nothing() -> None:
    inputs, seen = tensors(0, 2), forms(0)["dense"][1].clone()
    torch.testing.assert_close(attend(*inputs, Dense(seen), None, 1e5), attend(*inputs, Dense(seen)), atol=1e-3, rtol=1e-3)
    seen[:, 3] = False
    found = attend(*inputs, Dense(seen), None, 2.0)
    assert not found[:, :, 3].any()
    found.sum().backward()
    assert all(each.grad.isfinite().all() for each in inputs)


def test_bfloat16_follows_float32() -> None:
    inputs, seen = [each.detach() for each in tensors(0, 2)], forms(0)["dense"][1]
    wanted = attend(*inputs, Dense(seen), None, 2.0)
    half = attend(*(each.bfloat16() for each in inputs), Dense(seen), None, 2.0)
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).norm() / wanted.norm() < 0.02
