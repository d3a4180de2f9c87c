"""Codes of other shapes than a grid: rows, clips, levels; vectors in another order. Learned, written, and equal when read anew."""

from typing import Any

import pytest
import torch
from torch import nn

from mmblocks import (
    GREEDY,
    Decoder,
    Generation,
    GridFormat,
    GridGrammar,
    LMHead,
    MultimodalModel,
    Sampling,
    TextEmbedding,
    codes,
    vectors,
)
from mmblocks import text as as_text
from mmblocks.embedders import DepthCodeEmbedding
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import DepthCodeHead, RegressionHead
from mmblocks.sequence.segments import Codes, Vectors
from mmblocks.vocabulary import CodeIds, DepthCodeFormat

FORMATS = {
    "row": GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(6,), first=8), fixed_size=(5,)),
    "clip": GridFormat(begin=1, closing=(2,), row_end=3, codes=CodeIds(sizes=(6,), first=8), fixed_size=(2, 2, 3)),
    "levels": GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(6, 5), first=8), fixed_size=(2, 3)),
}


@pytest.mark.parametrize("shape", FORMATS)
def test_codes_are_learned_and_written(shape: str) -> None:
    torch.manual_seed(0)
    form = FORMATS[shape]
    vocab = form.codes.stop
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=vocab, dim=16)},
        trunk=Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={"text": LMHead(dim=16, vocab_size=vocab)},
    ).eval()
    ((_, made),) = model.generate([[as_text([1])]], GridGrammar(form), Generation(sampling=GREEDY))
    assert isinstance(made, Codes)
    assert made.grid.shape == (*form.fixed_size, *([2] if shape == "levels" else []))  # type: ignore[misc]
    batch = model.batch_builder()([[codes(made.grid, form, target="text")]])
    learned = batch.targets["text"]
    assert isinstance(learned.values, torch.Tensor)
    assert len(learned.values) == made.grid.numel()
    model(batch).losses["text"].backward()
    head = model.outputs["text"]
    assert isinstance(head, LMHead)
    logits = head.logits(model.hidden(batch)[0][learned.places])
    offsets = form.codes.ranges_of(0), form.codes.ranges_of(form.num_levels - 1)
    for row, (found, logit) in enumerate(zip(learned.values.tolist(), logits, strict=True)):
        ((first, stop),) = offsets[row % form.num_levels]
        assert int(logit[first:stop].argmax()) + first == found


@pytest.mark.parametrize("delays", [None, (0, 1, 2)])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_levels_as_one_token_are_learned_and_written(delays: tuple[int, ...] | None, guidance: float | None) -> None:
    torch.manual_seed(0)
    form = DepthCodeFormat(sizes=(7, 6, 5), delays=delays)
    depth = Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=16)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=16), "codes": DepthCodeEmbedding(sizes=form.sizes, dim=16)},
        trunk=Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={"codes": DepthCodeHead(dim=16, sizes=form.sizes, trunk=depth)},
    ).eval()
    block = VectorBlock(begin=1, end=None, size=(2, 3), head="codes", input="codes", format=form)
    grammar = VectorGrammar(block, vocab_size=16)
    without: Any = None if guidance is None else [[as_text([3, 1])]]
    options = Generation(sampling=Sampling(temperature=0.5), generator=0, guidance=guidance)
    ((_, made),) = model.generate([[as_text([2, 1])]], grammar, options, unconditional=without)
    assert isinstance(made, Codes)
    assert made.grid.shape == (2, 3, 3)
    ((_, greedy),) = model.generate([[as_text([2, 1])]], grammar, Generation(sampling=GREEDY))
    assert isinstance(greedy, Codes)
    batch = model.batch_builder()([[as_text([2, 1]), codes(greedy.grid, form, input="codes", target="codes")]])
    model(batch).losses["codes"].backward()
    placed = batch.targets["codes"]
    head = model.outputs["codes"]
    assert isinstance(head, DepthCodeHead)
    again = head.sample(model.hidden(batch)[0][placed.places], sampling=GREEDY, present=form.present(2, 3))
    assert torch.equal(again, placed.values)


def test_vectors_in_another_order() -> None:
    torch.manual_seed(0)
    order = (3, 0, 5, 1, 4, 2)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=16), "latents": nn.Linear(4, 16)},
        trunk=Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={"latents": RegressionHead(dim=16, target_dim=4)},
    ).eval()
    block = VectorBlock(begin=1, end=None, size=(2, 3), head="latents", input="latents", order=order)
    ((_, made),) = model.generate([[as_text([2, 1])]], VectorGrammar(block, vocab_size=16), Generation())
    assert isinstance(made, Vectors)
    sample = [as_text([2, 1]), vectors(made.values, input="latents", target="latents", order=torch.tensor(order))]
    assert model(model.batch_builder()([sample])).losses["latents"] < 1e-10
    plain = [as_text([2, 1]), vectors(made.values, input="latents", target="latents")]
    assert model(model.batch_builder()([plain])).losses["latents"] > 1e-4
    with pytest.raises(ValueError, match="accepted: each of 0 to 5 once"):
        VectorGrammar(VectorBlock(begin=1, end=None, size=(2, 3), head="x", input="x", order=(0, 0)), vocab_size=4)
