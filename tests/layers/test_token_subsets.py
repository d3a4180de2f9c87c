"""Budgets are met, shares are kept to, and nothing is read and asked for at once."""

import pytest
import torch

from mmblocks import Block
from mmblocks.heads import MaskedTokenHead
from mmblocks.layers.reduction.token_subsets import TokenSubsets

MODALITY = torch.tensor([[0] * 12 + [1] * 20 + [2] * 4 + [-1] * 4, [0] * 30 + [2] * 10])


def subsets(**options) -> TokenSubsets:
    return TokenSubsets(**{"read": 8, "asked": (3, 6), "read_alphas": (1.0, 1.0, 0.0), "asked_alphas": (0.2, 1.0, 0.01)} | options)


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_are_met_and_nothing_is_read_that_is_asked(seed) -> None:
    found, again = (subsets().sample(MODALITY, generator=source(seed)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert (found.read.sum(dim=1) == 8).all() and ((found.asked.sum(dim=1) >= 3) & (found.asked.sum(dim=1) <= 6)).all()
    assert not (found.read & found.asked).any()
    assert not (found.read | found.asked)[MODALITY == -1].any()
    assert not found.read[MODALITY == 2].any()  # its concentration is zero


def test_shares_are_those_of_the_budget() -> None:
    shares = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.3, 0.2]])
    found = subsets(read_alphas=(1, 1, 1)).sample(MODALITY, read_shares=shares, generator=source(0))
    counts = [MODALITY[row][found.read[row]].bincount(minlength=3).tolist() for row in range(2)]
    assert counts == [[6, 2, 0], [6, 0, 2]]  # the second row has no modality 1: its share goes to the others


def test_a_row_with_few_tokens_asks_before_it_reads() -> None:
    found = subsets(read=50, asked=2).sample(MODALITY[:, :3], generator=source(1))
    assert found.asked.sum(dim=1).tolist() == [2, 2] and found.read.sum(dim=1).tolist() == [1, 1]


def test_every_token_is_as_likely() -> None:
    found = subsets(read=1, asked=1, asked_alphas=(1, 1, 1)).sample(torch.zeros(4000, 4, dtype=torch.long), generator=source(2))
    assert (found.asked.float().mean(dim=0) - 0.25).abs().max() < 0.03
    assert (found.read.float().mean(dim=0) - 0.25).abs().max() < 0.03


def test_a_masked_head_learns_what_is_asked(tmp_path) -> None:
    one = subsets()
    one.save_pretrained(tmp_path)
    found = Block.from_pretrained(tmp_path).sample(MODALITY, generator=source(3))
    assert torch.equal(found.asked, one.sample(MODALITY, generator=source(3)).asked)
    ids, hidden = torch.randint(11, MODALITY.shape), torch.randn(*MODALITY.shape, 8)
    loss = MaskedTokenHead(dim=8, vocab_size=11).loss(hidden[found.asked], ids[found.asked])
    assert loss.shape == (int(found.asked.sum()),)


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="asked is 0; accepted: 1 or more"):
        subsets(asked=0)
    with pytest.raises(ValueError, match=r"read is \(5, 3\); accepted: 0 or more"):
        subsets(read=(5, 3))
    with pytest.raises(ValueError, match="read_alphas has 2 modalities, asked_alphas 3"):
        subsets(read_alphas=(1, 1))
    with pytest.raises(ValueError, match="at least one above 0"):
        subsets(asked_alphas=(0, 0, 0))
    with pytest.raises(ValueError, match="nothing may be asked"):
        subsets(asked_alphas=(0, 1, 0)).sample(MODALITY)
    with pytest.raises(ValueError, match=r"order has shape \(2, 3\); accepted: \(2, 40\)"):
        subsets().sample(MODALITY, order=torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"read_shares has shape \(2, 2\); accepted: \(2, 3\)"):
        subsets().sample(MODALITY, read_shares=torch.rand(2, 2))
