import math

import pytest
import torch

from mmblocks.layers import categorical
from mmblocks.layers.categorical import GREEDY, NO_SAMPLE, Sampling, keep_top_k, keep_top_p, sample_ids, truncate
from mmblocks.support import checks


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf]).expand(40000, 4)
    drawn = sample_ids(logits, Sampling(temperature=2.0), generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(share, (logits[0] / 2).softmax(-1), atol=0.01, rtol=0)
    assert share[3] == 0


def test_injected_noise_decides_the_draw() -> None:
    logits = torch.zeros(2, 3)
    gumbel = torch.tensor([[0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])
    assert sample_ids(logits, Sampling(), gumbel=gumbel).tolist() == [1, 0]


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    assert sample_ids(torch.tensor([[0.0, 3.0, 3.0]]), GREEDY).tolist() == [1]


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
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1e39},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_settings_outside_their_ranges_are_refused(options) -> None:
    with pytest.raises(ValueError, match="accepted"):
        Sampling(**options)


BAD = {
    "all minus infinity": ([-math.inf] * 3, "row 1 are all minus infinity"),
    "NaN": ([0.0, math.nan, 1.0], "row 1 hold NaN or plus"),
    "infinity": ([0.0, math.inf, 1.0], "row 1 hold NaN or plus infinity"),
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=2), Sampling(top_p=0.5), Sampling(temperature=0.5)])
@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_rows_without_an_id_to_draw_are_refused(row, message, sampling) -> None:
    with pytest.raises(ValueError, match=message):
        sample_ids(torch.tensor([[0.0, 1.0, 2.0], row]), sampling)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.5, top_p=0.5)])
@pytest.mark.parametrize("row", [row for row, _ in BAD.values()], ids=BAD)
def test_where_a_look_would_wait_the_row_says_that_it_has_no_id(row, sampling, monkeypatch) -> None:
    """As on a GPU: no later look-up takes such an id, offset or not."""
    monkeypatch.setattr(categorical, "is_readable", lambda values: False)
    monkeypatch.setattr(checks, "is_readable", lambda values: False)
    drawn = sample_ids(torch.tensor([[-math.inf, 1.0, -math.inf], row]), sampling)
    assert drawn.tolist() == [1, NO_SAMPLE]
    assert int(drawn[1]) + 10**9 < -(10**9)


def test_noise_that_is_not_finite_is_refused() -> None:
    """Beside a logit of minus infinity it would make NaN, which wins."""
    with pytest.raises(ValueError, match="gumbel holds NaN or infinity"):
        sample_ids(torch.tensor([[0.0, -math.inf]]), Sampling(), gumbel=torch.tensor([[0.0, math.inf]]))


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-40, 1e-38, 1e-20, 1e-4])
@pytest.mark.parametrize("more", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_temperatures_close_to_zero_take_the_likeliest(temperature: float, more) -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0, -math.inf], [-7.0, -5.0, -6.0, -9.0, -8.0], [0.0, 1e30, 1e31, 1.0, 2.0]])
    drawn = sample_ids(logits, Sampling(temperature=temperature, **more), generator=torch.Generator().manual_seed(0))
    assert drawn.tolist() == [2, 1, 2]


def test_close_to_zero_equals_are_still_drawn_alike() -> None:
    drawn = sample_ids(
        torch.tensor([[3.0, 3.0, 1.0]]).expand(400, 3), Sampling(temperature=1e-46), generator=torch.Generator().manual_seed(0)
    )
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_as_float32_does(dtype) -> None:
    logits = torch.linspace(-3, 3, 64)[None].to(dtype)
    half, single = (
        sample_ids(values, Sampling(), generator=torch.Generator().manual_seed(0)) for values in (logits, logits.float())
    )
    assert torch.equal(half, single)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "options",
    [{"temperature": "0.5"}, {"temperature": True}, {"top_k": 2.5}, {"top_k": True}, {"top_p": "0.9"}, {"temperature": None}],
)
def test_settings_that_are_no_numbers_are_refused(options) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=f"{name} is .*; accepted: "):
        Sampling(**options)


def test_an_id_forced_by_the_largest_float_is_drawn_at_any_temperature() -> None:
    logits = torch.tensor([[0.0, torch.finfo(torch.float32).max, 1.0]])
    for temperature in (1e-46, 1e-3, 0.5, 1.0, 1e38):
        assert sample_ids(logits, Sampling(temperature=temperature, top_p=0.9)).tolist() == [1]


@pytest.mark.parametrize("at", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_the_ends_of_the_random_numbers_fall_on_ids_that_may_come(at: float, monkeypatch) -> None:
    logits = torch.full((3, 9), float("-inf"))
    logits[0, 3:6], logits[1, 8], logits[2, 0] = 0, -7, 80
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, at, dtype=torch.float64))
    ids = sample_ids(logits, Sampling())
    assert ids.tolist() == [{0.0: 3, 0.5: 4}.get(at, 5), 8, 0]


def test_many_rows_are_sampled_each_for_itself(monkeypatch) -> None:
    """Rows are worked through some at a time; what a row is given does not depend on how many."""
    logits = torch.randn(7, 50)
    ids: list[list[int]] = []
    for at_once in (1 << 15, 120, 1):
        monkeypatch.setattr(categorical, "_AT_ONCE", at_once)
        ids.append(sample_ids(logits, Sampling(top_k=9), generator=torch.Generator().manual_seed(0)).tolist())
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) > 1
