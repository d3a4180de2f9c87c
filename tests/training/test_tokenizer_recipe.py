import pytest

from mmblocks.training.tokenizer_recipe import TokenizerRecipe


def test_rates_rise_and_fall() -> None:
    recipe = TokenizerRecipe(warm_up=4, decay_steps=100, final_share=0.1)
    assert recipe.rate(0) == pytest.approx(0.25, abs=1e-3)
    assert recipe.rate(3) == pytest.approx(1, abs=5e-3)
    assert recipe.rate(50) == pytest.approx(0.55)
    assert recipe.rate(100) == recipe.rate(500) == pytest.approx(0.1)
    assert TokenizerRecipe().rate(10**9) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("l1", -1.0), ("lr", float("nan")), ("revive_every", 0), ("decay_steps", 0), ("max_grad_norm", 0)]
)
def test_numbers_that_make_no_sense(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; accepted"):
        TokenizerRecipe(**{name: value})
