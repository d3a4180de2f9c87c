"""Merging and dropping tokens: what is left, in which order, and that tables follow."""

import pytest
import torch

from mmblocks.layers.reduction.token_reduction import attention_importance, drop_tokens, falling_rate, keep_important, merge_similar
from mmblocks.sequence.tokens import NO_HEAD, PADDING, TokenTable


@pytest.mark.parametrize("length", [1, 2, 9, 16])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_token_is_in_one_that_is_left(length, in_order) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, length, 4)
    made = merge_similar(x, length // 2, in_order=in_order)
    for row in range(3):
        for number, vector in enumerate(made.x[row]):
            members = (made.into[row] == number).nonzero().flatten()
            assert int(made.kept[row, number]) in members
            torch.testing.assert_close(vector, x[row, members].mean(0))
        assert not in_order or made.kept[row].tolist() == sorted(made.kept[row].tolist())


def test_both_orders_hold_the_same_tokens() -> None:
    x = torch.randn(2, 9, 4)
    ours, published = merge_similar(x, 3), merge_similar(x, 3, in_order=False)
    order = published.kept.argsort(dim=1)
    torch.testing.assert_close(published.x.gather(1, order[..., None].expand(-1, -1, 4)), ours.x)


def test_what_is_alike_is_merged_by_the_metric_that_is_given() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1], [0, 2], [4, 0]]])
    assert merge_similar(x, 2).into.tolist() == [[1, 0, 0, 1]]
    metric = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    made = merge_similar(x, 2, metric=metric)
    assert made.into.tolist() == [[0, 0, 1, 1]]
    assert made.x.tolist() == [[[0.5, 0.5], [2.0, 1.0]]]


@pytest.mark.parametrize("num_merged", [-1, 4])
def test_more_than_half_cannot_be_merged(num_merged) -> None:
    with pytest.raises(ValueError, match=f"num_merged is {num_merged}; accepted: 0 to 3, half of 7 tokens"):
        merge_similar(torch.randn(1, 7, 2), num_merged)


def test_merging_passes_gradients() -> None:
    x = torch.randn(1, 8, 4, requires_grad=True)
    merge_similar(x, 4).x.square().sum().backward()
    assert (x.grad != 0).all()


def test_attention_that_ends_at_one_token_makes_it_important() -> None:
    logits = torch.zeros(1, 2, 3, 3)
    logits[..., 2] = 100.0
    torch.testing.assert_close(attention_importance(logits), torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(attention_importance(torch.zeros(1, 2, 4, 4)), torch.full((1, 4), 0.25))


def test_the_rate_falls_from_one_to_none() -> None:
    assert [falling_rate(layer, first=2, num_layers=4) for layer in range(7)] == [1, 1, 0.75, 0.5, 0.25, 0, 0]


@pytest.mark.parametrize(("rate", "wanted"), [(0.0, [0, 4]), (0.5, [0, 3, 4]), (0.7, [0, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])])
def test_text_stays_and_the_most_important_of_the_rest(rate, wanted) -> None:
    visual = torch.tensor([[False, True, True, True, False]])
    keep = keep_important(torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.0]]), visual, rate)
    assert keep[0].nonzero().flatten().tolist() == wanted


def test_a_rate_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate is 1\.5; accepted: 0 to 1"):
        keep_important(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 1.5)


def test_rows_become_shorter_and_tables_follow() -> None:
    x, table = torch.randn(2, 5, 3), TokenTable.text(2, 5)
    keep = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
    made = drop_tokens(x, table, keep)
    assert torch.equal(made.x[0], x[0, [0, 2, 3]]) and torch.equal(made.x[1, 0], x[1, 3]) and not made.x[1, 1:].any()
    assert made.table.order.tolist() == [[0, 2, 3], [3, 0, 0]]
    assert made.table.document.tolist() == [[0, 0, 0], [0, PADDING, PADDING]]
    assert made.table.target[1, 1] == NO_HEAD and made.table.grid.shape == (2, 3, 3)
    assert torch.equal(made.kept, torch.tensor([[0, 2, 3], [3, 0, 0]]))
