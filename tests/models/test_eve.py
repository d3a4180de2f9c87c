"""EVEv1 and EVEv2 as models: images and text in, losses and text out."""

import pytest
import torch

from mmblocks import Generation, TextGrammar, image, text
from mmblocks.embedders import EVE1PatchAlignment
from mmblocks.models import EVE1, EVE2

SIZES = {"vocab_size": 40, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48, "vision_dim": 16}
MODELS = {
    "eve1": lambda: EVE1(**SIZES, vision_heads=4, patch_size=2, image_size=32, teacher_image_size=16, teacher_patch_size=4),
    "eve2": lambda: EVE2(**SIZES, patch_size=2, max_size=16),
}


def model_of(name: str):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def samples(pixels: torch.Tensor | None = None) -> list:
    pixels = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(1)) if pixels is None else pixels
    return [
        [text([1, 2]), image(pixels), text([3, 4, 5], target="text")],
        [text([6]), text([7, 8], target="text")],
    ]


@pytest.mark.parametrize("name", MODELS)
def test_one_training_step_reaches_every_parameter(name) -> None:
    model = model_of(name).train()
    output = model(model.batch_builder()(samples()))
    assert set(output.losses) == {"text"} and output.token_losses["text"].shape == (5,)
    output.losses["text"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded(name, tmp_path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    batch = model.batch_builder()(samples())
    assert torch.equal(again(batch).hidden, model(batch).hidden)


@pytest.mark.parametrize("name", MODELS)
def test_text_after_an_image_is_generated(name) -> None:
    model = model_of(name)
    prompts = [[text([1, 2]), image(torch.rand(3, 4, 8))], [text([6, 7])]]
    grammar = TextGrammar(40, stop=())
    made = {row: segment.content for row, segment in model.generate(prompts, grammar, Generation(max_tokens=4))}
    assert {row: len(ids) for row, ids in made.items()} == {0: 4, 1: 4}


def test_eve2_without_images_is_its_language_model() -> None:
    """Whatever the weights of images are."""
    model = model_of("eve2")
    batch = model.batch_builder()(samples()[1:])
    before = model(batch).hidden
    for name, parameter in model.named_parameters():
        if ".vision." in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model(batch).hidden, before)


def test_eve1_learns_from_a_teacher_too() -> None:
    model = model_of("eve1").train()
    alignment = EVE1PatchAlignment(dim=32, teacher_dim=8, num_layers=2, layer_step=2, num_heads=2)
    batch = model.batch_builder()(samples())
    output = model.aligned(batch, alignment, [torch.randn(2, 3, 8)])
    torch.testing.assert_close(output.losses["text"], model(batch).losses["text"])
    sum(output.losses.values()).backward()
    assert all(p.grad is not None for p in [*model.parameters(), *alignment.parameters()])

    without = model.aligned(model.batch_builder()(samples()[1:]), alignment, [])
    assert without.losses["alignment"] == 0
    with pytest.raises(ValueError, match="teacher has the features of 2 images"):
        model.aligned(batch, alignment, [torch.randn(2, 3, 8)] * 2)
