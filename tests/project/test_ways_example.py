"""The recipes of ways of writing: short, learn words and images in one pass, and reply with both."""

import inspect
from pathlib import Path

import pytest
import torch

import mmblocks as mm

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")
pytest.importorskip("diffusers")
WAYS = ("emu3", "orthus", "show_o", "transfusion", "bagel", "nexus", "metaqueries", "vargpt")
SEGMENTS = {"codes": "Codes", "scales": "Codes", "latents": "Vectors", "pixels": "Image"}


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import ways_of_writing

        yield ways_of_writing


@pytest.fixture(scope="module")
def sizes(example):
    return example.Sizes(dim=32, num_layers=1, num_heads=1, mlp_dim=48, num_steps=3)


@pytest.fixture(scope="module")
def digits(example):
    """A few to learn from, and a few held out."""
    return tuple(type(some)(some.pixels[::25], some.labels[::25]) for some in example.load_digits())


@pytest.fixture(scope="module")
def tokenizers(example, digits, tmp_path_factory):
    """Hardly trained; read from the folder the second time."""
    folder = tmp_path_factory.mktemp("tokenizers")
    first, again = (example.load_tokenizers(folder, digits[0], num_steps=3) for _ in range(2))
    for images in ("latents", "codes", "scales"):
        assert torch.equal(*(one.encode(images, digits[1].pixels) for one in (first, again)))
    return again


def image(way, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if way.images == "pixels":
        return torch.rand(3, 28, 28, generator=generator)
    if way.images == "latents":
        return torch.randn(7, 7, 4, generator=generator)
    return torch.randint(128, (70,) if way.images == "scales" else (7, 7), generator=generator)


def test_the_ways_are_those_of_the_table(example) -> None:
    assert tuple(example.RECIPES) == WAYS


def test_recipes_are_short(example) -> None:
    assert len((EXAMPLES / "ways_of_writing.py").read_text().splitlines()) <= 150
    for recipe in example.RECIPES.values():
        assert len(inspect.getsource(inspect.getmodule(recipe)).splitlines()) <= 60


@pytest.mark.parametrize("name", WAYS)
def test_words_and_images_are_learned_in_one_pass(example, sizes, name: str) -> None:
    torch.manual_seed(0)
    way = example.RECIPES[name](sizes)
    passes = []
    way.model.trunk.register_forward_hook(lambda *_: passes.append(1))
    batch = way.model.batch_builder(example.TEXT)([[*example.told(7), *way.written(image(way, 0)), *example.named(7)]])
    output = way.model(batch)
    assert set(output.losses) == set(way.weights) and len(passes) == 1
    assert len(output.token_losses["text"]) == 1 + len("seven") + 1 + (50 if name == "emu3" else 0)
    sum(way.weights[head] * loss for head, loss in output.losses.items()).backward()
    assert all(parameter.grad is not None for parameter in way.model.trunk.parameters())


@pytest.mark.parametrize("name", WAYS)
def test_a_row_that_is_read_teaches_its_name(example, sizes, name: str) -> None:
    """Words after an image that nothing was said of depend on that image."""
    torch.manual_seed(0)
    way = example.RECIPES[name](sizes)
    build = way.model.batch_builder(example.TEXT)

    def losses(seed: int) -> torch.Tensor:
        batch = build([[*example.NOTHING, *way.read(image(way, seed)), *example.named(7)]])
        return way.model(batch, generator=torch.Generator().manual_seed(0)).token_losses["text"][-6:]

    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))


@pytest.mark.parametrize("name", WAYS)
def test_a_reply_holds_an_image_and_words(example, sizes, digits, tokenizers, name: str) -> None:
    torch.manual_seed(0)
    way = example.RECIPES[name](sizes)
    assert len(example.train_way(way, tokenizers, digits[0], num_steps=2)) == 2
    written = [segment for _, segment in example.reply(way, [[*example.told(3), example.BEGUN]], way.grammar)]
    assert [type(segment).__name__ for segment in written] == [SEGMENTS[way.images], "Text"]
    assert tokenizers.decode(written[0]).shape == (3, 28, 28)
    assert example.measure(way, range(1))[0] == {"emu3": 50, "orthus": 50, "nexus": 2, "metaqueries": 2, "vargpt": 5}.get(
        name, 1 + sizes.num_steps
    )


def test_figures_are_of_every_reply(example, sizes, digits, tokenizers) -> None:
    torch.manual_seed(0)
    way = example.RECIPES["nexus"](sizes)
    train, held_out = digits
    figures, written = example.evaluate(way, tokenizers, held_out, example.Reader(train), count=2)
    assert written.shape == (20, 3, 28, 28)
    assert (
        "20 written digits read as the digit told" in figures
        and f"{len(held_out.labels[::5])} held-out digits named right" in figures
    )
    said = ["three<stop>", "three", "four<stop>", ""]
    assert example.share_right(said, torch.tensor([3, 3, 3, 3])) == 0.5


def test_a_saved_model_is_loaded(example, sizes, tmp_path) -> None:
    way = example.RECIPES["show_o"](sizes)
    way.model.save_pretrained(tmp_path)
    again = mm.MultimodalModel.from_pretrained(tmp_path, trunk=way.model.trunk)  # whose positions are code, which is not stored
    batch = again.batch_builder(example.TEXT)([[*example.told(7), *way.written(image(way, 0)), *example.named(7)]])
    losses = [model(batch, generator=torch.Generator().manual_seed(0)).losses for model in (way.model, again)]
    assert losses[0] == losses[1]


def test_bagels_experts_are_those_of_noise(example, sizes) -> None:
    """Text and clean copies meet the first weights, noised tokens the second."""
    torch.manual_seed(0)
    way = example.RECIPES["bagel"](sizes)
    layer = way.model.trunk.layers[0].mlp.up
    for parameter in layer["generation"].parameters():
        parameter.data.zero_()
    read = [*example.NOTHING, *way.read(image(way, 0))]
    build = way.model.batch_builder(example.TEXT)
    batch = build([read], learn=False)
    clean = way.model(batch).hidden
    for parameter in layer["generation"].parameters():
        parameter.data.normal_()
    torch.testing.assert_close(way.model(batch).hidden, clean)
    learned = build([read])
    noised = way.model(learned, generator=torch.Generator().manual_seed(0)).hidden
    for parameter in layer["generation"].parameters():
        parameter.data.zero_()
    assert not torch.equal(way.model(learned, generator=torch.Generator().manual_seed(0)).hidden, noised)
