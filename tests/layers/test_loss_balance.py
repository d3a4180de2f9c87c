"""Losses of several heads as one, by weights that may change over training."""

import pytest
import torch

from mmblocks.layers import LossBalance


def test_weights_follow_straight_lines_between_points_and_stay_outside_of_them() -> None:
    balance = LossBalance({"image": [(10, 1.0), (20, 3.0), (30, 0.0)]})
    assert [balance.at("image", step) for step in (0, 10, 15, 20, 25, 30, 99)] == [1.0, 1.0, 2.0, 3.0, 1.5, 0.0, 0.0]


def test_the_sum_is_weighted_and_learned() -> None:
    losses = {"text": torch.tensor(3.0, requires_grad=True), "image": torch.tensor(0.5, requires_grad=True)}
    total = LossBalance({"text": 1.0, "image": 5.0})(losses)
    total.backward()
    assert total.item() == 5.5
    assert [losses[name].grad.item() for name in losses] == [1.0, 5.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), [], [(5, 1.0), (5, 2.0)], [(0, float("inf"))]])
def test_weights_that_cannot_be_are_refused(weight: object) -> None:
    with pytest.raises(ValueError, match=r"weights\['text'\] is"):
        LossBalance({"text": weight})  # type: ignore[dict-item]


def test_a_head_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="head 'image' has no weight"):
        LossBalance({"text": 1.0})({"image": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="losses is empty"):
        LossBalance({"text": 1.0})({})
