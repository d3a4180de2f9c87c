"""What the example of training a tokenizer rests on."""

from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def photos():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import photos

        yield photos


def test_held_out_photographs_are_never_seen(photos) -> None:
    assert not set(photos.TRAIN) & set(photos.HELD_OUT)
    train, held_out = photos.load_photos()
    assert len(train) == 2 * len(photos.TRAIN) and len(held_out) == len(photos.HELD_OUT)
    for photo in train + held_out:
        assert photo.shape[0] == 3 and min(photo.shape[1:]) >= 128 and photo.min() >= 0 and photo.max() <= 1


def test_crops_of_a_step_are_the_same_wherever_one_begins(photos) -> None:
    ramp = torch.arange(3 * 20 * 30.0).view(3, 20, 30) / 1800
    all_steps, later = photos.crops_from(0, [ramp], 4, 8), photos.crops_from(2, [ramp], 4, 8)
    first = [next(all_steps) for _ in range(4)]
    assert torch.equal(first[2], next(later)) and torch.equal(first[3], next(later)) and not torch.equal(first[0], first[1])
    assert first[0].shape == (4, 3, 8, 8)
