"""Parts composed: losses, gradients, parts of one's own, and what goes wrong."""

import pytest
import torch
from torch import nn

from mmblocks import Block, Decoder, LMHead, MultimodalModel, codes, image, text, vectors
from mmblocks.sequence.masks import Dense, visible
from tests.shared.tiny import FORMAT, TOKENIZER, WIDTH, tiny_model


def samples():
    first = [text("what? "), image(torch.rand(3, 4, 8), bidirectional=True), text(" a 7", target="lm")]
    second = [text("draw"), codes(torch.randint(12, (2, 3)), FORMAT, target="lm")]
    third = [image(torch.rand(3, 12, 4)), text("ok", target="lm")]
    return [first, second, third]


def test_losses_are_means_over_the_tokens_asked() -> None:
    model = tiny_model()
    batch = model.batch_builder(TOKENIZER)(samples())
    output = model(batch)
    assert output.hidden.shape == (3, batch.ids.shape[1], WIDTH)
    assert output.token_losses["lm"].shape == (4 + 6 + 2,)
    rows = output.hidden.flatten(0, 1)[batch.targets["lm"].places]
    logits = rows @ model.outputs["lm"].weight.T
    wanted = torch.nn.functional.cross_entropy(logits, batch.targets["lm"].values)
    torch.testing.assert_close(output.losses["lm"], wanted)


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = tiny_model()
    sum(model(model.batch_builder(TOKENIZER)(samples())).losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arrangement", [{"padding": "left"}, {"pack": 60}, {"pack": 200}])
def test_arrangement_in_rows_changes_no_loss(arrangement) -> None:
    model = tiny_model()
    data = samples()
    separate = torch.cat([model(model.batch_builder(TOKENIZER)([s])).token_losses["lm"] for s in data])
    together = model(model.batch_builder(TOKENIZER)(data, **arrangement)).token_losses["lm"]
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_token_and_a_batch_that_asks_nothing() -> None:
    model = tiny_model()
    output = model(model.batch_builder(TOKENIZER)([[text("a")]]))
    assert output.losses == {} and output.hidden.shape == (1, 1, WIDTH)


def test_parts_keep_their_names_and_identity() -> None:
    trunk = Decoder(dim=WIDTH, num_layers=1, num_heads=2, mlp_dim=16)
    model = tiny_model(trunk=trunk)
    assert model.trunk is trunk
    names = {name.removeprefix("trunk.") for name, _ in model.named_parameters() if name.startswith("trunk.")}
    assert names == {name for name, _ in trunk.named_parameters()}
    assert "outputs.lm.weight" in model.state_dict()


def test_saved_and_loaded_model_gives_the_same_numbers(tmp_path) -> None:
    model = tiny_model().eval()
    batch = model.batch_builder(TOKENIZER)(samples())
    model.save_pretrained(tmp_path / "model")
    again = Block.from_pretrained(tmp_path / "model")
    assert isinstance(again, MultimodalModel)
    assert torch.equal(again(batch).hidden, model(batch).hidden)
    trunk = Decoder.from_pretrained(tmp_path / "model" / "trunk")
    assert torch.equal(trunk.norm.weight, model.trunk.norm.weight)


class PixelMeans:
    """A user's embedder: no base class at all, and a token for every image's mean colour."""

    def __call__(self, images):
        return torch.stack([pixels.mean(dim=(1, 2)).repeat(WIDTH)[:WIDTH] for pixels in images])

    def layout(self, height, width):
        from mmblocks.sequence.tokens import ImageLayout

        return ImageLayout(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))


class Brightness(nn.Module):
    """A user's head: how bright is what comes next?"""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def loss(self, hidden, target, weight=None):
        return (self.linear(hidden) - target).square().mean(dim=1)

    def sample(self, hidden, *, generator=None):
        return self.linear(hidden)


def only_text(queries, keys):
    """A user's rule: images are seen by nobody but themselves."""
    return visible(queries, keys) & ((keys.span < 0)[:, None, :] | (queries.span[:, :, None] == keys.span[:, None, :]))


def test_a_users_own_embedder_head_and_mask_rule() -> None:
    model = tiny_model()
    mine = MultimodalModel(
        inputs={"text": model.inputs["text"], "means": PixelMeans(), "colours": nn.Linear(3, WIDTH)},
        trunk=model.trunk,
        outputs={"brightness": Brightness(), "lm": model.outputs["lm"]},
        mask=only_text,
    )
    colours = torch.rand(2, 3)
    sample = [
        text("mean "), image(torch.rand(3, 5, 7), input="means"), text("is "),
        vectors(colours, input="colours", target="brightness"), text("!", target="lm"),
    ]  # fmt: skip
    batch = mine.batch_builder(TOKENIZER)([sample, [text("a"), text("b", target="lm")]])
    output = mine(batch)
    assert set(output.losses) == {"brightness", "lm"}
    assert output.token_losses["brightness"].shape == (2,)
    sum(output.losses.values()).backward()
    assert mine.outputs["brightness"].linear.weight.grad.isfinite().all()

    wanted = model.trunk(mine.embed(batch), batch.table, mask=Dense(only_text(batch.table, batch.table)))
    assert torch.equal(output.hidden, wanted)
    assert not torch.allclose(output.hidden, model.trunk(mine.embed(batch), batch.table))


def test_swapping_the_images_of_a_batch_is_noticed() -> None:
    model = tiny_model()
    batch = model.batch_builder(TOKENIZER)(samples())
    fewer = batch.inputs["vision"]._replace(values=batch.inputs["vision"].values[:1])
    with pytest.raises(ValueError, match="input 'vision' made 4 tokens for 11 places"):
        model(batch._replace(inputs={**batch.inputs, "vision": fewer}))


def test_unknown_inputs_and_heads_are_named() -> None:
    model = tiny_model()
    batch = model.batch_builder(TOKENIZER)(samples())
    with pytest.raises(ValueError, match=r"input 'audio'.*\['text', 'vision'\]"):
        model(batch._replace(inputs={"audio": batch.inputs["text"]}))
    with pytest.raises(ValueError, match=r"head 'diffusion'.*\['lm'\]"):
        model(batch._replace(targets={"diffusion": batch.targets["lm"]}))


def test_ids_out_of_range_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"ids lie in \[97, 9999\]"):
        model(model.batch_builder()([[text([97, 9999])]]))
    with pytest.raises(ValueError, match=r"target lies in"):
        LMHead(dim=4, vocab_size=5).loss(torch.randn(1, 4), torch.tensor([5]))


def test_a_model_without_inputs_or_with_a_name_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="inputs is empty"):
        tiny_model(inputs={})
    with pytest.raises(ValueError, match="a part is named 'forward'"):
        tiny_model(outputs={"forward": LMHead(dim=WIDTH, vocab_size=3)})
    with pytest.raises(KeyError, match="no part 'img'"):
        tiny_model().inputs["img"]
