from dataclasses import fields, replace
from typing import get_type_hints

import pytest

from mmblocks.training.tokenizer_recipe import (
    AdversarySettings,
    CodebookSettings,
    LossSettings,
    OptimizerSettings,
    RecipeArguments,
    TokenizerRecipe,
)

GROUPS = {"losses": LossSettings, "adversary": AdversarySettings, "optimizer": OptimizerSettings, "codebook": CodebookSettings}
FLAT = {
    "l1": 1.0, "l2": 0.0, "perceptual": 1.0, "loss_weights": None, "gan_weight": 0.8, "gan_start": 0, "lecam": 0.0,
    "last_layer": None, "lr": 1e-4, "discriminator_lr": None, "betas": (0.5, 0.9), "weight_decay": 0.0, "warm_up": 0,
    "decay_steps": None, "final_share": 0.01, "max_grad_norm": 1.0, "kmeans_at": None, "revive_every": None,
    "revive_until": None, "encode_options": None, "autocast": False, "seed": 0,
}  # fmt: skip
"""The settings, and their defaults, of recipes before there were groups; files still hold them so."""


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


def test_settings_go_to_their_groups() -> None:
    recipe = TokenizerRecipe(lr=1e-3, gan_start=3, losses=LossSettings(l2=0.5), l1=0.0, revive_every=7, seed=1)
    assert recipe.optimizer == OptimizerSettings(lr=1e-3)
    assert recipe.adversary == AdversarySettings(gan_start=3)
    assert recipe.losses == LossSettings(l1=0.0, l2=0.5)
    assert recipe.codebook == CodebookSettings(revive_every=7)
    assert replace(recipe, lr=1.0) == replace(recipe, optimizer=OptimizerSettings(lr=1.0))
    assert recipe != replace(recipe, warm_up=2) and hash(TokenizerRecipe()) == hash(TokenizerRecipe())


def test_a_file_holds_the_settings_as_ever() -> None:
    assert TokenizerRecipe().settings() == FLAT
    recipe = TokenizerRecipe(lr=1e-3, loss_weights={"codebook": 2.0}, autocast=True)
    assert TokenizerRecipe(**recipe.settings()) == recipe


def test_the_signature_names_all_settings() -> None:
    assert get_type_hints(RecipeArguments) == {each.name: each.type for group in GROUPS.values() for each in fields(group)}
    with pytest.raises(TypeError, match=r"no setting 'gan'; accepted: l1, .*gan_weight"):
        TokenizerRecipe(gan=1.0)


def test_settings_are_read_under_their_former_names() -> None:
    recipe = TokenizerRecipe(lr=1e-3)
    with pytest.warns(FutureWarning, match=r"recipe\.lr is now recipe\.optimizer\.lr"):
        assert recipe.lr == 1e-3
    with pytest.raises(AttributeError, match="no attribute 'rates'"):
        _ = recipe.rates
