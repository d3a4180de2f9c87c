import math

import pytest
import torch

from mmblocks.layers.categorical import GREEDY, Sampling, draw, keep_top_k, keep_top_p, truncate


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf]).expand(40000, 4)
    drawn = draw(logits, Sampling(temperature=2.0), generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(share, (logits[0] / 2).softmax(-1), atol=0.01, rtol=0)
    assert share[3] == 0


def test_injected_noise_decides_the_draw() -> None:
    logits = torch.zeros(2, 3)
    gumbel = torch.tensor([[0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])
    assert draw(logits, Sampling(), gumbel=gumbel).tolist() == [1, 0]


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    assert draw(torch.tensor([[0.0, 3.0, 3.0]]), GREEDY).tolist() == [1]


def test_top_k_keeps_the_k_likeliest_and_their_equals() -> None:
    kept = keep_top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, True, True]]
    assert keep_top_k(torch.tensor([[1.0, 2.0]]), 5).isfinite().all()


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[False, True, False, False]]
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_p(logits, 1e-6).isfinite().sum() == 1
    assert keep_top_p(logits, 1.0).isfinite().all()


def test_temperature_comes_before_truncation() -> None:
    """Flattened by the temperature, two ids are needed to reach p = 0.6; before it, one would do."""
    logits = torch.tensor([[0.65, 0.25, 0.1]]).log()
    assert truncate(logits, Sampling(temperature=3.0, top_p=0.6)).isfinite().sum() == 2
    assert truncate(logits, Sampling(top_p=0.6)).isfinite().sum() == 1


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_settings_outside_their_ranges_are_refused(options) -> None:
    with pytest.raises(ValueError, match="accepted"):
        Sampling(**options)
