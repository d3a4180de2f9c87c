import pytest
import torch

from mmblocks import GREEDY, LMHead, TextEmbedding
from mmblocks.heads import ModalityLMHead, MultiTokenHead, TiedLMHead
from mmblocks.heads.vocabularies import extend_vocabulary, train_rows_only


def test_an_extended_vocabulary_keeps_the_old_rows() -> None:
    weight = torch.randn(7, 4)
    longer = extend_vocabulary(weight, 3, generator=torch.Generator().manual_seed(0))
    assert longer.shape == (10, 4) and torch.equal(longer[:7], weight)
    torch.testing.assert_close(longer[7:], weight.mean(0).expand(3, -1), atol=0.1, rtol=0)
    assert not torch.equal(longer[7], longer[8])
    with pytest.raises(ValueError, match="num_new is 0"):
        extend_vocabulary(weight, 0)


def test_a_tied_head_shapes_its_logits_as_one_with_weights_of_its_own() -> None:
    torch.manual_seed(0)
    table = TextEmbedding(vocab_size=9, dim=4, init_std=1.0, scale=3.0)
    factors = {"scale": 0.5, "softcap": 0.8}
    tied, own = TiedLMHead(table=table, **factors), LMHead(dim=4, vocab_size=9, **factors)
    own.weight.data = table.weight.data
    hidden, target = torch.randn(3, 4), torch.tensor([1, 6, 8])
    assert torch.equal(tied.logits(hidden), own.logits(hidden))
    for head in (tied, own):
        head.loss(hidden, target).sum().backward()
    assert torch.equal(table.weight.grad, own.weight.grad)


def test_only_the_visual_rows_learn() -> None:
    head = LMHead(dim=4, vocab_size=9)
    handle = train_rows_only(head.weight, 5)
    head.loss(torch.randn(3, 4), torch.tensor([1, 6, 8])).sum().backward()
    assert not head.weight.grad[:5].any() and head.weight.grad[5:].any()
    handle.remove()
    with pytest.raises(ValueError, match="accepted: at least one row"):
        train_rows_only(head.weight, 9)


def test_a_modality_has_ids_of_its_own() -> None:
    torch.manual_seed(0)
    head = ModalityLMHead(dim=4, vocab_size=6, first=100)
    hidden, target = torch.randn(3, 4), torch.tensor([100, 103, 105])
    assert set(head.sample(hidden, sampling=GREEDY).tolist()) <= set(range(100, 106))
    plain = LMHead(dim=4, vocab_size=6)
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head.loss(hidden, target), plain.loss(hidden, target - 100))
    with pytest.raises(ValueError, match="target lies in"):
        head.loss(hidden, target - 100)


def test_several_ids_from_one_state() -> None:
    torch.manual_seed(0)
    head = MultiTokenHead(dim=4, vocab_size=6, num_tokens=3)
    hidden, target = torch.randn(2, 4), torch.randint(6, (2, 3))
    head.loss(hidden, target, torch.tensor([1.0, 0.5])).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    assert head.sample(hidden).shape == (2, 3)
    assert head.sample(hidden, gumbel=torch.zeros(2, 3, 6)).shape == (2, 3)


@pytest.mark.unchecked
def test_targets_that_do_not_fit_are_refused() -> None:
    head = MultiTokenHead(dim=4, vocab_size=6, num_tokens=3)
    with pytest.raises(ValueError, match=r"target has shape \(2, 2\); accepted: \(2, 3\)"):
        head.loss(torch.randn(2, 4), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"weight has shape \(1,\)"):
        LMHead(dim=4, vocab_size=6).loss(torch.randn(2, 4), torch.zeros(2, dtype=torch.long), torch.ones(1))
