"""Next-scale prediction as a head, beside VAR, which has the same parts in one model."""

import pytest
import torch

from mmblocks.heads import NextScaleHead
from mmblocks.roles import SpanHead
from mmblocks.sequence import Conditions, Spans
from mmblocks.sequence.masks import Everything
from tests.models.test_var import image_model


def both():
    """VAR and a head with its weights."""
    model = image_model()
    var, quantizer = model.trunk, model.tokenizer.bottleneck
    head = NextScaleHead(dim=16, quantizer=quantizer, num_classes=5).eval()
    head.tokens.load_state_dict(var.tokens.state_dict())
    return var, quantizer, head


def head_of_codes() -> NextScaleHead:
    return both()[2]


def spans_of(rows: int, labels=None, values=None) -> Spans:
    places = torch.arange(rows * 11)
    given = {} if labels is None else {"label": labels}
    grid = torch.zeros(rows * 11, 3, dtype=torch.long)
    return Spans("codes", ((11,),) * rows, (11,) * rows, grid, places, places[:0], places, values, given, None)


def written(var, head, spans: Spans, streams: int, guide, generator) -> torch.Tensor:
    """Lets the head write, with VAR's decoder for a trunk."""
    rows, step = streams * spans.num_spans, 0
    cache, writing = var.trunk.new_cache(rows, 11), head.write(spans, guide=guide, generator=generator)
    one = next(writing)
    try:
        while True:
            first, stop = one.part
            count = stop - first
            assert one.keep and count == var.tokens.counts[step]
            added = one.reading.added.view(-1, spans.num_spans, count, 16).expand(streams, -1, -1, -1).flatten(0, 1)
            conditions = Conditions(one.reading.condition, torch.arange(rows)[:, None])
            states = var.trunk(added, var.row.tables(rows).slice(first, stop), cache, mask=Everything(), conditions=conditions)
            one = writing.send(states.view(streams, spans.num_spans * count, 16))
            step += 1
    except StopIteration as stop:
        return stop.value


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_it_writes_what_var_samples(guidance) -> None:
    var, quantizer, head = both()
    labels = torch.tensor([1, 4])
    wanted = var.sample(labels, quantizer, guidance=guidance, generator=torch.Generator().manual_seed(0)).ids

    def guide(logits: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        t = guidance * strength
        return logits[0] if len(logits) == 1 else (1 + t) * logits[0] - t * logits[1]

    streams = 2 if guidance else 1
    told = torch.cat([labels, torch.full_like(labels, 5)])[: 2 * streams]
    found = written(var, head, spans_of(2, told), streams, guide, torch.Generator().manual_seed(0))
    assert torch.equal(found.view(2, 11), wanted) and wanted.unique().numel() > 3


def test_it_learns_what_var_learns() -> None:
    var, quantizer, head = both()
    ids, labels = torch.randint(10, (2, 11), generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0])
    drop = torch.tensor([False, True])
    wanted = var.loss(labels, quantizer.next_scale_inputs(ids), ids, drop=drop)
    spans = spans_of(2, labels, ids.flatten())
    reading = head.corrupt(spans, drop=drop)
    conditions = Conditions(reading.condition, torch.arange(2)[:, None])
    states = var.trunk(reading.added.view(2, 11, 16), var.row.tables(2), conditions=conditions)
    found = head.loss(states.flatten(0, 1), spans, reading)
    torch.testing.assert_close(found.view(2, 11), wanted, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert all(value.grad is not None and value.grad.any() for name, value in head.named_parameters() if "quantizer" not in name)
    assert all(value.grad is None for value in quantizer.parameters())


def test_saved_equals_loaded(tmp_path) -> None:
    head = both()[2]
    head.save_pretrained(tmp_path)
    again = NextScaleHead.from_pretrained(tmp_path)
    assert again.config["num_classes"] == 5 and again.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in head.state_dict().items())


def test_without_classes_nothing_is_modulated() -> None:
    _, quantizer, _ = both()
    head = NextScaleHead(dim=16, quantizer=quantizer)
    assert isinstance(head, SpanHead)
    spans = spans_of(2, values=torch.randint(10, (22,)))
    reading = head.corrupt(spans)
    assert reading.condition is None and reading.added.shape == (22, 16)
    states = torch.randn(22, 16)
    wanted = torch.nn.functional.cross_entropy(head.tokens.output(states), spans.values, reduction="none")
    torch.testing.assert_close(head.loss(states, spans, reading), wanted)
    writing = head.write(spans_of(2), guide=lambda logits, strength: logits[0])
    assert next(writing).reading.added.shape == (2, 16) and writing.send(torch.zeros(1, 2, 16)).part == (1, 3)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (spans_of(1, values=torch.zeros(11, dtype=torch.long)), "spans are given .*; accepted: 'label' among them"),
        (spans_of(1, torch.tensor([6]), torch.zeros(11, dtype=torch.long)), r"label lies in \[6, 6\]; accepted: \[0, 5\]"),
        (spans_of(1, torch.tensor([0]), torch.full((11,), 10)), r"ids lie in \[10, 10\]; accepted: \[0, 9\]"),
        (spans_of(1, torch.tensor([0]))._replace(counts=(5,)), r"spans have \(5,\) tokens; accepted: 11"),
    ],
)
def test_what_does_not_fit_is_refused(spans, message) -> None:
    with pytest.raises(ValueError, match=message):
        both()[2].corrupt(spans)


def test_a_finished_span_is_read_as_it_was_written() -> None:
    """With its class, however often classes are left out while training; or with none."""
    head = head_of_codes().train()
    head.label_dropout = 1.0
    ids = torch.randint(10, (22,), generator=torch.Generator().manual_seed(2))
    for given, labels in ((torch.tensor([1, 4]), torch.tensor([1, 4])), (None, torch.tensor([5, 5]))):
        found = head.finished(spans_of(2, given, ids))
        wanted = head.corrupt(spans_of(2, labels, ids), drop=torch.zeros(2, dtype=torch.bool))
        assert torch.equal(found.added, wanted.added) and torch.equal(found.condition, wanted.condition)
