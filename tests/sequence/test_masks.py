"""Every lowering says what the rule says, on random tables; the rule says what its sentence says."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from mmblocks.layers.attention.attend import attend, interval_block_mask, interval_spans, prepare
from mmblocks.sequence.masks import Causal, Dense, Intervals, densify, intervals, lower, visible
from mmblocks.sequence.tokens import TokenTable
from tests.parity.sequence.mmgeneric_masks import order_of
from tests.shared.random_tables import random_table

SEEDS = range(12)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sees(table: TokenTable, row: int, q: int, k: int) -> bool:
    """The rule's sentence, read aloud for one pair."""
    if table.is_padding[row, q] or table.is_padding[row, k]:
        return q == k
    if table.document[row, q] != table.document[row, k]:
        return False
    order_q, order_k = table.order[row, q], table.order[row, k]
    noisy_q, noisy_k = bool(table.noisy[row, q]), bool(table.noisy[row, k])
    if not noisy_k and order_k < order_q:
        return True
    both_clean = not noisy_q and not noisy_k
    same_noised_span = noisy_q and noisy_k and table.span[row, q] == table.span[row, k]
    return bool(order_k == order_q and (both_clean or same_noised_span))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_visible_is_the_sentence(seed: int, noisy: bool) -> None:
    table = random_table(generator(seed), batch=2, length=24, noisy=noisy)
    mask = visible(table)
    for row in range(2):
        for q in range(24):
            for k in range(24):
                assert bool(mask[row, q, k]) == sees(table, row, q, k), (row, q, k)


@pytest.mark.parametrize("seed", SEEDS)
def test_intervals_equal_the_rule(seed: int) -> None:
    table = random_table(generator(seed))
    found = intervals(table)
    assert found is not None
    assert torch.equal(densify(found, 40, 40, "cpu"), visible(table))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_queries", [40, 7, 1])
def test_lowered_mask_equals_the_rule_at_real_tokens(seed: int, noisy: bool, num_queries: int) -> None:
    keys = random_table(generator(seed), noisy=noisy)
    queries = keys.slice(40 - num_queries, 40)
    mask = densify(lower(queries, keys), num_queries, 40, "cpu").expand(3, -1, -1)
    real = ~queries.is_padding
    assert torch.equal(mask[real], visible(queries, keys)[real])


def test_plain_text_lowers_to_nothing() -> None:
    assert lower(TokenTable.text(2, 9)) == Causal()


def test_padding_behind_text_lowers_to_nothing_and_padding_before_it_does_not() -> None:
    after = TokenTable.padding(1, 6)
    after.write(0, TokenTable.text(1, 4))
    before = TokenTable.padding(1, 6)
    before.write(2, TokenTable.text(1, 4))
    assert isinstance(lower(after), Causal)
    assert isinstance(lower(before), Intervals)


def test_noised_copies_and_split_documents_stay_dense() -> None:
    noised = TokenTable.text(1, 4)
    noised.noisy[0, 3] = True
    split = TokenTable.text(1, 4)
    split.document[0] = torch.tensor([0, 1, 1, 0])
    assert isinstance(lower(noised), Dense)
    assert isinstance(lower(split), Dense)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [40, 128, 300])
def test_block_mask_equals_flex_attentions_own(seed: int, length: int) -> None:
    table = random_table(generator(seed), length=length)
    mask = intervals(table)
    assert mask is not None
    ours = interval_block_mask(mask, length)
    dense = densify(mask, length, length, "cpu")
    theirs = create_block_mask(lambda b, h, q, k: dense[b, q, k], 3, 1, length, length, device="cpu")
    assert torch.equal(ours.to_dense() > 0, theirs.to_dense() > 0)
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_block_mask_of_one_image_that_ends_inside_a_tile() -> None:
    mask = Intervals(torch.zeros(1, 300, dtype=torch.long), torch.full((1, 300), 300))
    theirs = create_block_mask(lambda b, h, q, k: k >= 0, 1, 1, 300, 300, device="cpu")
    assert torch.equal(interval_block_mask(mask, 300).full_kv_num_blocks, theirs.full_kv_num_blocks)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_all_ways_to_attend_agree(seed: int, num_kv_heads: int) -> None:
    random = generator(seed)
    table = random_table(random)
    mask = intervals(table)
    assert mask is not None
    query = torch.randn(3, 4, 40, 16, generator=random)
    key, value = torch.randn(2, 3, num_kv_heads, 40, 16, generator=random)
    wanted = attend(query, key, value, Dense(visible(table)))
    torch.testing.assert_close(attend(query, key, value, interval_spans(mask)), wanted, atol=2e-6, rtol=1e-5)
    small = prepare(mask, 40, 40, torch.device("cpu"))
    assert isinstance(small, Dense)
    torch.testing.assert_close(attend(query, key, value, small), wanted, atol=2e-6, rtol=1e-5)


def test_spans_have_the_gradients_of_the_dense_mask() -> None:
    random = generator(0)
    table = random_table(random, batch=2, length=30)
    mask = intervals(table)
    assert mask is not None
    inputs = [torch.randn(2, 2, 30, 8, generator=random, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 2, 30, 8, generator=random)
    gradients = [
        torch.autograd.grad((attend(*inputs, form) * upstream).sum(), inputs)
        for form in (interval_spans(mask), Dense(visible(table)))
    ]
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=1e-5)


def test_value_width_and_scale_may_differ_from_the_keys() -> None:
    query, key, value = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 3)
    got = attend(query, key, value, Causal(), scale=0.5)
    scores = (query @ key.transpose(-1, -2) * 0.5).masked_fill(~torch.ones(5, 5).tril().bool(), float("-inf"))
    torch.testing.assert_close(got, scores.softmax(-1) @ value)


@pytest.mark.parametrize("seed", SEEDS)
def test_segments_with_flags_are_orders(seed: int) -> None:
    """URSA's formula, (q >= k) or (segment of q, times its flag, is that of k), with flags of -1, 0 and 1; see its parity case."""
    draws = generator(seed)
    sizes = torch.randint(0, 6, (5,), generator=draws).clamp(min=torch.tensor([1, 0, 0, 0, 1])).tolist()
    flags = (torch.randint(-1, 2, (5,), generator=draws)).tolist()
    segment = torch.arange(5).repeat_interleave(torch.tensor(sizes))
    place = torch.arange(len(segment))
    wanted = (place[:, None] >= place) | ((segment * torch.tensor(flags)[segment])[:, None] == segment)
    order = torch.tensor([order_of(sizes, flags)])
    table = TokenTable.text(*order.shape)._replace(order=order)
    assert torch.equal(visible(table)[0], wanted)
    assert torch.equal(densify(lower(table), len(place), len(place), "cpu")[0], wanted)
