"""LlamaGen: captions of different lengths, saving, bad input."""

import pytest
import torch

from mmblocks import GREEDY, Generation, GridGrammar, TokenTable
from mmblocks.embedders import CaptionEmbedding, ClassLabelEmbedding
from mmblocks.generation.guidance import ClassifierFree
from mmblocks.models import LlamaGen, LlamaGenT2I
from mmblocks.models.llamagen import caption, label
from mmblocks.sequence.masks import visible
from mmblocks.sequence.segments import codes
from mmblocks.vocabulary.grid_format import raster_format

SIZES = {"vocab_size": 11, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 24}
FORMAT = raster_format(2, 3, 11)


@torch.no_grad()
def test_short_captions_equal_padded_and_masked_ones() -> None:
    """Upstream pads on the left and masks: conditions have no positions, so leaving padding out gives the same states."""
    torch.manual_seed(0)
    model = LlamaGenT2I(**SIZES, caption_dim=6, num_caption_tokens=5).eval()
    features, grid = torch.randn(5, 6), torch.randint(0, 11, (2, 3))
    batch = model.batch_builder()([[caption(features[2:]), codes(grid, FORMAT, input="code")]])
    ours = model.hidden(batch)[0, 3:]

    table = TokenTable.text(1, 11)
    table.span[:, 5:] = 0
    table.grid[:, 5:] = batch.table.grid[:, 3:]

    def masked(queries, keys):
        seen = visible(queries, keys)
        seen[:, :, :2] = False
        return seen | torch.eye(11, dtype=torch.bool)

    embeds = torch.cat([model.inputs["caption"](features), model.inputs["code"](grid.flatten())])[None]
    torch.testing.assert_close(ours, model.trunk(embeds, table, mask=masked)[0, 5:])


def test_an_image_of_any_size_from_a_class(tmp_path) -> None:
    torch.manual_seed(0)
    model = LlamaGen(**SIZES, num_classes=4).eval()
    model.save_pretrained(tmp_path)
    options = Generation(sampling=GREEDY, input="code", guidance=ClassifierFree(scale=2.0))
    found = [
        dict(m.generate([[label(1)], [label(3)]], GridGrammar(FORMAT), options, unconditional=[[label(4)]] * 2))
        for m in (model, LlamaGen.from_pretrained(tmp_path))
    ]
    assert {row: tuple(segment.grid.shape) for row, segment in found[0].items()} == {0: (2, 3), 1: (2, 3)}
    assert all(torch.equal(found[0][row].grid, found[1][row].grid) for row in (0, 1))


def test_every_parameter_learns() -> None:
    model = LlamaGen(**SIZES, num_classes=4).train()
    grid = torch.randint(0, 11, (2, 3))
    batch = model.batch_builder()([[label(1), codes(grid, FORMAT, input="code", target="code")]])
    model(batch).losses["code"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_labels_are_dropped_while_training_only() -> None:
    embedding = ClassLabelEmbedding(num_classes=3, dim=4, drop=1.0)
    labels = torch.tensor([0, 2])
    assert torch.equal(embedding.train()(labels), embedding.weight[[3, 3]])
    assert torch.equal(embedding.eval()(labels), embedding.weight[labels])
    assert torch.equal(embedding(labels, dropped=torch.tensor([True, False])), embedding.weight[[3, 2]])


def test_conditions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels lie in \[5, 5\]"):
        ClassLabelEmbedding(num_classes=4, dim=4)(torch.tensor([5]))
    with pytest.raises(ValueError, match="features have width 3"):
        CaptionEmbedding(caption_dim=4, dim=4)(torch.randn(2, 3))
    with pytest.raises(ValueError, match="multiple of 4"):
        LlamaGen(**{**SIZES, "num_heads": 8}, num_classes=4)
