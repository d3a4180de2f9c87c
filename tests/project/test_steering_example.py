"""The steering example: short, does what its two methods say, and runs from end to end."""

from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def steering(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import steering

    torch.manual_seed(0)
    return steering


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "steering.py").read_text().splitlines()) <= 100


def test_vista_turns_states_and_keeps_their_lengths(steering) -> None:
    seeing, blind, x = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 3, 8)
    turned = steering.vista({1: seeing}, {1: blind}, strength=0.7).hidden[1](x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    direction = seeing[:, -1:] - blind
    before, after = (torch.cosine_similarity(states, direction, dim=-1) for states in (x, turned))
    assert (after > before).all()


def test_vhr_scales_the_half_of_the_heads_that_the_image_changed_most(steering) -> None:
    blind = {n: torch.randn(1, 4, 1, 5) for n in range(4)}
    change = torch.tensor([0.1, 3.0, 0.2, 2.0])[None, :, None, None]
    hooks = steering.vhr({n: found + change for n, found in blind.items()}, blind)
    assert sorted(hooks.heads) == [2, 3]
    found, factors = torch.randn(1, 4, 6, 5), torch.tensor([1.0, 2.0, 1.0, 2.0])[None, :, None, None]
    torch.testing.assert_close(hooks.heads[3](found), found * factors)


def test_it_runs_from_end_to_end(steering) -> None:
    model = steering.ColourNamer()
    steering.train(model, 4)
    said = steering.compare(model.eval())
    assert list(said) == ["as it is", "VISTA", "VHR"] and len(set(said.values())) == 3
