"""Conditions that are left out by chance."""

import random

import pytest

from mmblocks import text
from mmblocks.sequence import drop_conditions

SAMPLE = [text([1]), text([2]), text([3]), text([4], target="text")]


def test_all_that_is_read_goes_together_at_the_rate_that_was_said() -> None:
    rng = random.Random(0)
    lengths = [len(drop_conditions(SAMPLE, 0.25, rng, keep=1)) for _ in range(4000)]
    assert set(lengths) == {2, 4}
    assert abs(lengths.count(2) / 4000 - 0.25) < 0.03


def test_each_segment_may_have_a_chance_of_its_own() -> None:
    kept = drop_conditions(SAMPLE, [1.0, 0.0, 1.0], random.Random(0))
    assert kept == [SAMPLE[1], SAMPLE[3]]


@pytest.mark.parametrize(("chance", "message"), [(1.5, "numbers in"), ([0.5], "chance has 1 numbers; accepted: 3")])
def test_chances_that_cannot_be_are_refused(chance: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drop_conditions(SAMPLE, chance, random.Random(0))
