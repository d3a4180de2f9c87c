"""Surgery: what is kept is kept bit for bit, what is new is named, and the untouched path computes what it did."""

import pytest
import torch

from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, TokenTable
from mmblocks.checkpoints.surgery.freezing import freeze, trainable_parts
from mmblocks.checkpoints.surgery.graft import (
    add_part,
    check_unchanged,
    extend_vocabulary,
    graft,
    insert_layers,
    rebuild,
    replace,
    untie,
)
from mmblocks.models.neo import NEO
from mmblocks.trunks import GatedMLP, Site

WIDTH = 16


def decoder(**options) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"dim": WIDTH, "num_layers": 3, "num_heads": 2, "mlp_dim": 24, **options}).eval()


def model() -> MultimodalModel:
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=10, dim=WIDTH)},
        trunk=decoder(),
        outputs={"lm": LMHead(dim=WIDTH, vocab_size=10)},
    )


def row() -> tuple[torch.Tensor, TokenTable]:
    return torch.randn(1, 5, WIDTH), TokenTable.text(1, 5)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_silent_layers_change_nothing(at: int) -> None:
    trunk = decoder()
    longer, report = insert_layers(trunk, at, 2, silent=True)
    report.verify()
    check_unchanged(trunk, longer, *row())
    assert len(longer.layers) == 5
    assert longer.config["num_layers"] == 5
    assert {name.split(".")[1] for name in report.new} == {str(at), str(at + 1)}
    assert not report.dropped


def test_layers_that_are_not_silent_change_something() -> None:
    trunk = decoder()
    longer, _ = insert_layers(trunk, 1, 1)
    with pytest.raises(ValueError, match="outputs differ"):
        check_unchanged(trunk, longer, *row())


@pytest.mark.parametrize("rows", ["mean", "built"])
def test_a_longer_vocabulary_keeps_the_old_rows(rows) -> None:
    head = LMHead(dim=WIDTH, vocab_size=10)
    longer, report = extend_vocabulary(head, 13, rows=rows)
    report.verify()
    assert report.grown == {"weight": "weight"}
    assert torch.equal(longer.weight[:10], head.weight)
    assert torch.allclose(longer.weight[10:], head.weight.mean(0)) == (rows == "mean")
    hidden = torch.randn(2, WIDTH)
    check_unchanged(head.logits, lambda x: longer.logits(x, 0, 10), hidden)


def test_a_longer_vocabulary_of_a_whole_tied_model() -> None:
    sizes = {"dim": WIDTH, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "vision": {"hidden_dim": 8}}
    longer, _ = extend_vocabulary(NEO(vocab_size=10, tie_embeddings=True, **sizes), 12)
    assert longer.outputs["text"].weight is longer.inputs["text"].weight
    assert longer.inputs["text"].weight.shape == (12, WIDTH)


def test_weights_are_cloned_and_reported() -> None:
    trunk = decoder()
    twice, report = rebuild(trunk, origins={"layers.2.*": "layers.1.*"})
    report.verify()
    assert torch.equal(twice.layers[2].mlp.up.weight, trunk.layers[1].mlp.up.weight)
    assert report.cloned["layers.2.mlp.up.weight"] == "layers.1.mlp.up.weight"
    assert "layers.2.mlp.up.weight" in report.dropped
    assert f"{len(report.cloned)} cloned" in str(report)
    with torch.no_grad():
        twice.layers[2].mlp.up.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"1 tensors differ.*layers\.2\.mlp\.up"):
        report.verify()
    assert not torch.equal(twice.layers[2].mlp.up.weight, twice.layers[1].mlp.up.weight)


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    trunk, wider = decoder(), decoder(mlp_dim=32)
    before = wider.layers[0].attention.query.weight.clone()
    with torch.no_grad():
        trunk.layers[0].attention.query.weight.add_(1)
    with pytest.raises(ValueError, match=r"mlp.* is \(32, 16\)"):
        graft(wider, trunk)
    with pytest.raises(ValueError, match="the source does not have"):
        graft(wider, trunk, {"layers.{}.mlp.*": "layers.{}.experts.*"})
    assert torch.equal(wider.layers[0].attention.query.weight, before)


def test_a_part_is_added_and_everything_else_is_the_same_object() -> None:
    whole = model()
    weight = whole.outputs["lm"].weight
    report = add_part(whole, "outputs", "codes", LMHead(dim=WIDTH, vocab_size=7))
    assert report.new == ("outputs.codes.weight",)
    assert whole.outputs["lm"].weight is weight
    assert set(whole.config["outputs"]) == {"lm", "codes"}
    with pytest.raises(ValueError, match="has it already"):
        add_part(whole, "outputs", "codes", LMHead(dim=WIDTH, vocab_size=7))


def test_a_block_is_replaced() -> None:
    trunk = decoder()
    report = replace(trunk, "layers.1.mlp", GatedMLP(hidden_dim=40).build(Site(WIDTH)))
    assert {name.split(".")[1] for name in report.dropped} == {"1"}
    assert trunk(*row()).shape == (1, 5, WIDTH)
    with pytest.raises(ValueError, match="no such module"):
        replace(trunk, "layers.9.mlp", GatedMLP(hidden_dim=40).build(Site(WIDTH)))


def test_a_tied_weight_is_untied() -> None:
    sizes = {"dim": WIDTH, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "vision": {"hidden_dim": 8}}
    tied = NEO(vocab_size=10, tie_embeddings=True, **sizes)
    report = untie(tied, "outputs.text.weight")
    report.verify()
    assert report.cloned == {"outputs.text.weight": "inputs.text.weight"}
    assert tied.outputs["text"].weight is not tied.inputs["text"].weight
    with pytest.raises(ValueError, match="other names too"):
        untie(tied, "outputs.text.weight")


def test_freezing_by_pattern_and_its_table() -> None:
    whole = model()
    table = freeze(whole, train=("outputs.*", "trunk.layers.{}.mlp.*"))
    sizes = {part.name: (part.trainable, part.total) for part in table.parts}
    assert sizes["inputs.text"] == (0, 160)
    assert sizes["outputs.lm"] == (160, 160)
    assert sizes["trunk.layers"][0] == 3 * 3 * WIDTH * 24
    assert table.total.trainable == sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert str(table).splitlines()[-1].split()[0] == "total"
    assert trainable_parts(whole, depth=1).parts[1].name == "trunk"
    with pytest.raises(ValueError, match="no parameter of MultimodalModel"):
        freeze(whole, train=("heads.*",))


def test_neos_first_stage_trains_the_prebuffer_and_not_the_head() -> None:
    sizes = {"dim": WIDTH, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "vision": {"hidden_dim": 8}}
    whole = NEO(vocab_size=10, num_prebuffer_layers=1, **sizes)
    freeze(whole, train=whole.pretraining_parameters())
    assert whole.trunk.layers[0].mlp.up.weight.requires_grad
    assert whole.trunk.layers[1].attention.query.place.weight.requires_grad
    assert not whole.trunk.layers[1].mlp.up.weight.requires_grad
    assert not whole.outputs["text"].weight.requires_grad
    freeze(whole, train=whole.pretraining_parameters(as_released=True))
    assert not whole.trunk.layers[0].mlp.up.weight.requires_grad
    assert whole.outputs["text"].weight.requires_grad
