"""Merging in rows of text and images: each image by itself, tables and losses follow, nothing else is touched."""

import pytest
import torch

from mmblocks.layers.reduction.token_importance import keep_most, prunable
from mmblocks.layers.reduction.token_merging import density_peaks, merge_clusters, merge_dropped, merge_pairs
from mmblocks.layers.reduction.token_reduction import drop_tokens, merge_tokens, moved, spread
from mmblocks.sequence.tokens import TokenTable
from tests.layers.test_token_importance import rows
from tests.shared.random_tables import random_table

METHODS = {
    "pairs": lambda x, table: merge_pairs(x, table, 0.4),
    "clusters": lambda x, table: merge_clusters(x, table, 0.4),
    "dropped": lambda x, table: merge_dropped(x, table, keep_most(x.norm(dim=-1), prunable(table), prunable(table).sum(1) // 2)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_each_token_is_in_one_of_its_own_image_and_all_else_is_as_it_was(method, seed: int) -> None:
    table = random_table(torch.Generator().manual_seed(seed))
    x = torch.randn(3, 40, 6)
    made = method(x, table)
    real, may_go = ~table.is_padding, prunable(table)
    # Where nothing of an image stays, merge_dropped has nothing to merge its tokens into.
    assert made.x.shape[1] < 40 and (made.into >= 0)[real & ~may_go].all() and not (made.into >= 0)[~real].any()
    assert method is METHODS["dropped"] or (made.into >= 0)[real].all()
    for row in range(3):
        for number in range(int((made.table.document[row] >= 0).sum())):
            members = (made.into[row] == number).nonzero().flatten()
            torch.testing.assert_close(made.x[row, number], x[row, members].mean(0))
            assert made.size[row, number] == len(members) and int(made.kept[row, number]) in members
            for column, now in zip(table, made.table, strict=True):
                assert torch.equal(column[row, made.kept[row, number]], now[row, number])
            for name in ("document", "span", "modality"):
                assert len(getattr(table, name)[row, members].unique()) == 1
            if not may_go[row, members[0]]:
                assert len(members) == 1 and torch.equal(made.x[row, number], x[row, members[0]])


def test_labels_and_states_follow() -> None:
    table, x = rows(), torch.randn(2, 14, 4)
    made = merge_pairs(x, table, 0.5)
    asked = torch.tensor([11, 12, 13, 14 + 12])
    now, there = moved(asked, made)
    assert there.all() and torch.equal(made.x.flatten(0, 1)[now], x.flatten(0, 1)[asked])
    back = spread(made.x, made)
    assert torch.equal(back[:, :2], x[:, :2]) and torch.equal(back[:, 11:], x[:, 11:])
    dropped = drop_tokens(x, table, ~prunable(table))
    assert moved(torch.tensor([4, 12]), dropped)[1].tolist() == [False, True]
    assert not spread(dropped.x, dropped)[:, 2:11].any()


def test_merging_again_weighs_by_size() -> None:
    x, table = torch.randn(1, 14, 4), rows(1)
    once = merge_pairs(x, table, 0.5)
    twice = merge_clusters(once.x, once.table, 0.01, size=once.size)
    torch.testing.assert_close(twice.x[0, 2], x[0, 2:11].mean(0))
    assert twice.size[0].tolist() == [1, 1, 9, 1, 1, 1]


def test_density_peaks_find_the_groups() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    group = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 1])
    x = centres[group] + 0.1 * torch.randn(12, 2)
    x, real = torch.stack([x, x.flip(0)]), torch.ones(2, 12, dtype=torch.bool)
    real[1, -1] = False
    found = density_peaks(x, real, torch.tensor([3, 3]), 3)
    assert torch.equal(group[found[0]], group) and len(found[0].unique()) == 3
    assert torch.equal(group.flip(0)[found[1]][:-1], group.flip(0)[:-1])


def test_rows_without_images_pass() -> None:
    x, table = torch.randn(2, 5, 4), TokenTable.text(2, 5)
    for method in METHODS.values():
        assert torch.equal(method(x, table).x, x)


def test_what_cannot_be_done_is_refused() -> None:
    x, table = torch.randn(1, 14, 4), rows(1)
    with pytest.raises(ValueError, match=r"share is 0\.6; accepted: 0 to 0\.5"):
        merge_pairs(x, table, 0.6)
    with pytest.raises(ValueError, match="share is 0, num_neighbours 5"):
        merge_clusters(x, table, 0)
    with pytest.raises(ValueError, match="into leads to a token that does not stay"):
        merge_tokens(x, table, torch.arange(14).roll(1)[None])
