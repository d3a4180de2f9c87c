"""Masked tokens, and codes that move along a metric."""

import pytest
import torch

from mmblocks import Block
from mmblocks.heads import MaskedTokenHead, MetricFlowHead
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens, masked_share
from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath


def masked() -> MaskedTokenHead:
    return MaskedTokenHead(dim=8, vocab_size=11, sampler=ConfidenceSampler(num_steps=4))


def metric() -> MetricFlowHead:
    path = MetricPath(num_codes=11, code_dim=3)
    return MetricFlowHead(dim=8, path=path, sampler=KineticSampler(num_steps=4))


@pytest.mark.parametrize("build", [masked, metric])
def test_a_step_and_sampling(build, tmp_path) -> None:
    torch.manual_seed(0)
    head = build()
    ids = torch.randint(11, (2, 7))
    noised = head.corrupt(ids, generator=torch.Generator().manual_seed(1))
    noised = noised.ids if build is masked else noised
    assert noised.shape == ids.shape
    table = torch.randn(12, 8)
    loss = head.loss(table[noised].flatten(0, 1), ids.flatten()).mean()
    loss.backward()
    assert head.weight.grad.any()

    start = torch.full((2, 7), 11) if build is masked else head.noise(2, 7)

    def predict(ids: torch.Tensor, step: int) -> torch.Tensor:
        return head.logits(table[ids])

    one, same = (head.decode(predict, start, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, same) and one.max() < 11
    head.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert torch.equal(again.decode(predict, start, generator=torch.Generator().manual_seed(2)), one)


def test_a_sure_model_fills_everything_in() -> None:
    wanted = torch.randint(11, (3, 9))
    logits = torch.full((3, 9, 11), -50.0).scatter(-1, wanted[..., None], 50.0)
    hidden = wanted.masked_fill(torch.rand(3, 9) < 0.6, 11)
    hidden[:, 0] = 11
    assert torch.equal(masked().decode(lambda *_: logits, hidden), wanted)
    found = metric().decode(lambda *_: logits, torch.randint(11, (3, 9)))
    assert torch.equal(found, wanted)


def test_at_least_one_code_is_hidden_and_the_seen_ones_stay() -> None:
    ids = torch.randint(11, (4, 5))
    hidden = MaskedTokens(mask_id=11).corrupt(ids, t=torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert hidden.mask.sum(1).tolist() == [5, 4, 1, 1]
    assert torch.equal(hidden.ids[~hidden.mask], ids[~hidden.mask]) and (hidden.ids[hidden.mask] == 11).all()


def test_near_codes_come_first() -> None:
    path = MetricPath(num_codes=11, code_dim=3)
    ids = torch.arange(11)[None]
    torch.testing.assert_close(path.probabilities(ids, 0.0), torch.full((1, 11, 11), 1 / 11))
    late = path.probabilities(ids, torch.tensor([0.99]))
    assert torch.equal(late.argmax(-1), ids)
    assert not path.velocity(ids, ids.flip(1), 0.0).any()


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    ids = torch.randint(11, (2, 7))
    with pytest.raises(ValueError, match="accepted: at least one hidden place"):
        masked().decode(lambda *_: torch.zeros(2, 7, 11), ids)
    with pytest.raises(ValueError, match=r"sampled has shape \(1, 2, 7\); accepted: \(4, 2, 7\)"):
        masked().decode(lambda *_: torch.zeros(2, 7, 11), ids * 0 + 11, sampled=ids[None])
    with pytest.raises(ValueError, match=r"order has shape \(2, 6\)"):
        masked().corrupt(ids, order=torch.rand(2, 6))
    with pytest.raises(ValueError, match="rows without ids"):
        masked().corrupt(ids[:, :0])
    with pytest.raises(ValueError, match="schedule is 'square'"):
        masked_share("square", torch.zeros(1))
    with pytest.raises(ValueError, match="cooling is 'fast'"):
        ConfidenceSampler(cooling="fast")
    with pytest.raises(ValueError, match=r"t has shape \(1,\); accepted: \(2,\)"):
        metric().corrupt(ids, t=torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"t has shape \(1,\); accepted: \(2,\)"):
        masked().corrupt(ids, t=torch.tensor([0.5]))
    with pytest.raises(ValueError, match="accepted: 0 to below 1"):
        metric().corrupt(ids, t=torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"uniform has shape \(2, 2, 7\); accepted: \(3, 2, 7\)"):
        metric().decode(lambda *_: torch.zeros(2, 7, 11), ids, uniform=torch.rand(2, 2, 7))
    with pytest.raises(ValueError, match="accepted: above 0"):
        MetricPath(num_codes=3, code_dim=2, alpha=0.0)
