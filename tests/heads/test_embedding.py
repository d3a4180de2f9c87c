import pytest
import torch

from mmblocks.heads import EmbeddingHead, MatchingHead, OutputMapper, RegressionHead
from mmblocks.heads.embedding import pool


def test_pooling_skips_padding_on_either_side() -> None:
    hidden = torch.arange(8.0).view(2, 4, 1)
    real = torch.tensor([[False, True, True, True], [True, True, False, False]])
    assert pool(hidden, real, "last").flatten().tolist() == [3, 5]
    assert pool(hidden, real, "first").flatten().tolist() == [1, 4]
    assert pool(hidden, real, "mean").flatten().tolist() == [2, 4.5]
    with pytest.raises(ValueError, match="a row without tokens"):
        pool(hidden, real & False, "last")


def test_what_belongs_together_is_near() -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(dim=4, embed_dim=4)
    hidden = torch.randn(5, 4)
    right = head.sample(hidden).detach()
    assert head.loss(hidden, right).mean() < head.loss(hidden, right.roll(1, 0)).mean()
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(head.loss(hidden, right, weight)[:3], head.loss(hidden[:3], right[:3]))
    loss = head.loss(hidden, right, torch.zeros(5)).sum()
    loss.backward()
    assert loss == 0 and all(not parameter.grad.any() for parameter in head.parameters())


def test_matching() -> None:
    torch.manual_seed(0)
    head = MatchingHead(dim=4)
    hidden = torch.randn(3, 4)
    chance = head.sample(hidden)
    torch.testing.assert_close(head.loss(hidden, torch.ones(3, dtype=torch.bool)), -chance.log())
    wrong = head.hard_negatives(torch.randn(6, 6))
    assert (wrong != torch.arange(6)).all()


@pytest.mark.parametrize("num_tokens", [5, None])
def test_output_mapper(num_tokens, tmp_path) -> None:
    torch.manual_seed(0)
    mapper = OutputMapper(dim=6, condition_dim=9, num_tokens=num_tokens, width=8, num_layers=1, num_heads=2)
    hidden = torch.randn(2, 3, 6)
    condition = mapper.sample(hidden)
    assert condition.shape == (2, num_tokens or 3, 9)
    mapper.loss(hidden, torch.randn_like(condition)).mean().backward()
    assert all(parameter.grad is not None for parameter in mapper.parameters())
    mapper.save_pretrained(tmp_path)
    torch.testing.assert_close(OutputMapper.from_pretrained(tmp_path).sample(hidden), condition)


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    hidden = torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"target has shape \(2, 3\); accepted: \(2, 5\)"):
        EmbeddingHead(dim=4, embed_dim=5).loss(hidden, torch.randn(2, 3))
    with pytest.raises(ValueError, match="accepted: 0 and 1"):
        MatchingHead(dim=4).loss(hidden, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="target holds NaN"):
        RegressionHead(dim=4, target_dim=3).loss(hidden, torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="distance is 'far'"):
        RegressionHead(dim=4, target_dim=3, distance="far")
    with pytest.raises(ValueError, match="1 layer or more"):
        OutputMapper(dim=4, condition_dim=3, num_layers=0)
    with pytest.raises(ValueError, match=r"target has shape \(2, 4\)"):
        OutputMapper(dim=4, condition_dim=3, num_tokens=None).loss(hidden[None], hidden)
