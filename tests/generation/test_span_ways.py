"""Every way of writing a span inside one composed model: what is learned, what is generated, and that a cache changes nothing.

Shapes: B rows, D width 32.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmblocks import GREEDY, Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, codes, text, vectors
from mmblocks.embedders import LearnedPlaces
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import (
    ClassTokens,
    MaskedCodesHead,
    MaskedVectorsHead,
    NextScaleHead,
    PlaceholderHead,
    RegressionHead,
    SpanDenoisingHead,
)
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.layers.spans import Read
from mmblocks.sequence.segments import Codes, Segment, Text, Vectors
from mmblocks.sequence.spans import Pass, Reading, SpanLayout, Spans
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.trunks import MaskedAutoencoder

DIM, BEGIN, END = 32, 7, 8
SIZE = (2, 3)
STEPS = 3


def sampler() -> DiffusersSampler:
    return DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=STEPS)


def trunk(**options: Any) -> Decoder:
    return Decoder(dim=DIM, num_layers=2, num_heads=4, mlp_dim=48, **options)


def known_first() -> MaskedAutoencoder:
    return MaskedAutoencoder(encoder=trunk(), decoder=trunk(), num_positions=64)


class LearnedGrid:
    """A way of one's own: the trunk reads one vector for all, and states are read as values by a linear map."""

    span = SpanLayout(writes="vectors", context="clean")

    def __init__(self) -> None:
        self.query = torch.ones(DIM)
        self.map = torch.linspace(-1, 1, DIM * 4).view(DIM, 4)

    def corrupt(self, spans: Spans, *, generator: Any = None) -> Reading:
        return Reading(added=self.query.repeat(spans.num_tokens, 1))

    def loss(self, hidden: Tensor, spans: Spans, reading: Reading) -> Tensor:
        return (hidden @ self.map - spans.rows()).square().mean(dim=-1)

    def write(self, spans: Spans, *, guide: Any, generator: Any = None) -> Any:
        hidden = yield Pass(self.corrupt(spans))
        return guide(hidden @ self.map)


HEADS: dict[str, Callable[[], Any]] = {
    "added": lambda: SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler()),
    "causal": lambda: SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler(), attends="causal"),
    "token": lambda: SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler(), time="token", output="modulated"),
    "noised context": lambda: SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler(), context="read"),
    "placeholders": lambda: PlaceholderHead(head=RegressionHead(dim=DIM, target_dim=4), num_tokens=8, dim=DIM),
    "masked": lambda: MaskedCodesHead(
        head=LMHead(dim=DIM, vocab_size=9), mask_id=9, sampler=ConfidenceSampler(num_steps=STEPS, sampling={"temperature": 0.8})
    ),
    "uniform": lambda: MaskedCodesHead(
        head=LMHead(dim=DIM, vocab_size=9), mask_id=None, sampler=ConfidenceSampler(num_steps=STEPS)
    ),
    "masked vectors": lambda: MaskedVectorsHead(head=RegressionHead(dim=DIM, target_dim=4), dim=DIM, num_steps=STEPS),
    "masked vectors, known first": lambda: MaskedVectorsHead(
        head=RegressionHead(dim=DIM, target_dim=4),
        dim=DIM,
        num_steps=STEPS,
        told="trunk",
        classes=ClassTokens(num_classes=3, dim=DIM, num_tokens=2),
    ),
    "masked vectors, known alone": lambda: MaskedVectorsHead(
        head=RegressionHead(dim=DIM, target_dim=4), dim=DIM, num_steps=STEPS, told="trunk"
    ),
    "next scale": lambda: NextScaleHead(dim=DIM, quantizer=MultiScaleQuantizer(dim=4, num_codes=9, scales=(1, (1, 2), (1, 3)))),
    "of one's own": LearnedGrid,
}


CODES = ("masked", "uniform", "next scale")
"""Ways whose values are codes."""


def model_of(way: str, **options: Any) -> MultimodalModel:
    torch.manual_seed(0)
    inputs: dict[str, nn.Module] = {
        "text": TextEmbedding(vocab_size=16, dim=DIM),
        "latents": nn.Linear(4, DIM),
        "codes": TextEmbedding(vocab_size=10, dim=DIM),
    }
    outputs = {"text": LMHead(dim=DIM, vocab_size=16), "image": HEADS[way]()}
    reader = known_first() if "known" in way else trunk(**options)
    inputs["latents"] = LearnedPlaces(embedder=inputs["latents"], dim=DIM, size=SIZE, init_std=1.0)
    return MultimodalModel(inputs=inputs, trunk=reader, outputs=outputs).eval()


def reads(way: str) -> str:
    return "codes" if way in CODES else "latents"


def picture(way: str, seed: int, size: tuple[int, ...] = SIZE, target: str | None = "image") -> Segment:
    generator = torch.Generator().manual_seed(seed)
    if way in CODES:
        grid = torch.randint(9, (6,) if way == "next scale" else size, generator=generator)
        return codes(grid, input="codes", target=target)
    return vectors(torch.randn(*size, 4, generator=generator), input="latents", target=target)


def grammar(way: str, *, num_images: int = 1, stop: tuple[int, ...] = (), size: tuple[int, ...] = SIZE) -> VectorGrammar:
    size = (6,) if way == "next scale" else size
    block = VectorBlock(begin=BEGIN, end=END, size=size, head="image", input=reads(way), whole=True)
    return VectorGrammar(block, vocab_size=16, num_images=num_images, stop=stop)


def same(first: Segment, second: Segment) -> None:
    if isinstance(first, Codes):
        assert isinstance(second, Codes)
        assert torch.equal(first.grid, second.grid)
    elif isinstance(first, Vectors):
        assert isinstance(second, Vectors)
        torch.testing.assert_close(first.values, second.values, rtol=1e-5, atol=1e-5)
    else:
        assert first == second


@pytest.mark.parametrize("way", HEADS)
def test_text_and_image_are_learned_in_one_pass(way: str) -> None:
    model = model_of(way)
    sample = [text([1, 2, BEGIN]), picture(way, 0), text([END, 3, 4], target="text")]
    output = model(model.batch_builder()([sample, sample[:2]]), generator=torch.Generator().manual_seed(0))
    assert output.token_losses["text"].shape == (3,)
    assert output.token_losses["image"].shape == ((2,) if "masked" in way or way == "uniform" else (12,))
    assert output.losses["image"] > 0.1
    sum(output.losses.values()).backward()
    assert all(p.grad is not None for p in model.trunk.parameters())


@pytest.mark.parametrize("way", HEADS)
def test_packed_and_padded_equal_separate(way: str) -> None:
    model = model_of(way)
    samples = [
        [text([1, 2, BEGIN]), picture(way, 0), text([END, 3, 4], target="text"), picture(way, 1), text([5], target="text")],
        [picture(way, 2, (1, 2)), text([4, 5], target="text")],
        [text([6]), picture(way, 3, (2, 2))],
    ]
    build = model.batch_builder()

    def given(batch: Any, start: int) -> dict[str, dict[str, Tensor]]:
        """The same numbers for the same spans."""
        spans = batch.spans["image"]
        drawn = [torch.Generator().manual_seed(start + index) for index in range(spans.num_spans)]
        if way in ("masked", "uniform"):
            parts = [torch.rand(count, generator=g) for count, g in zip(spans.counts, drawn, strict=True)]
            said = {"t": torch.linspace(0.1, 0.9, 4)[start : start + spans.num_spans], "order": torch.cat(parts)}
            other = {"other": (spans.rows() * 2 + 1) % 9} if way == "uniform" else {}
            return {"image": said | other}
        if way in ("placeholders", "of one's own", "next scale"):
            return {}
        if way.startswith("masked vectors"):
            return {"image": {"share": torch.ones(spans.num_spans), "order": torch.rand(spans.num_tokens)}}
        noise = torch.cat([torch.randn(count, 4, generator=g) for count, g in zip(spans.counts, drawn, strict=True)])
        return {"image": {"t": torch.tensor([100, 900, 400, 700])[start : start + spans.num_spans], "noise": noise}}

    alone: dict[str, list[Tensor]] = {"text": [], "image": []}
    start = 0
    for sample in samples:
        batch = build([sample])
        for name, losses in model(batch, given=given(batch, start)).token_losses.items():
            alone[name].append(losses)
        start += batch.spans["image"].num_spans
    for options in ({"pack": 64}, {}, {"padding": "left"}):
        batch = build(samples, **options)
        for name, losses in model(batch, given=given(batch, 0)).token_losses.items():
            torch.testing.assert_close(losses, torch.cat(alone[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", HEADS)
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_every_pass_on_the_cache_equals_one_without(way: str, guidance: float | None) -> None:
    """Text, a span, text, a span, text: the states that a head is sent are those of the whole row read anew."""
    model = model_of(way)
    head = model.outputs["image"]
    passes: list[tuple[Reading, Tensor]] = []
    write = head.write

    def recorded(spans: Spans, **options: Any) -> Iterator[Any]:
        writing = write(spans, **options)
        try:
            one = next(writing)
            while True:
                hidden = yield one
                passes.append((one.reading, hidden[0]))
                one = writing.send(hidden)
        except StopIteration as stop:
            return stop.value

    head.write = recorded
    rule = grammar(way, num_images=2)
    options = Generation(max_tokens=200, generator=3, guidance=guidance)
    unconditional = None if guidance is None else [[text([9])]]
    written = [segment for _, segment in model.generate([[text([1, 2, BEGIN])]], rule, options, unconditional=unconditional)]
    sample: list[Segment] = [text([1, 2, BEGIN])]
    assert sum(not isinstance(segment, Text) for segment in written) == 2
    kept = iter(passes)
    count = 1 if way in ("placeholders", "of one's own") else STEPS
    for segment in written:
        if isinstance(segment, Text):
            sample.append(text([END, *segment.content, BEGIN]))
            continue
        if way == "next scale":  # whose passes are parts of the row, and stay in it
            sample.append(segment)
            batch = model.batch_builder()([sample])
            found = torch.cat([next(kept)[1] for _ in range(STEPS)])
            rows = model.hidden(batch).flatten(0, 1)
            torch.testing.assert_close(found, rows[batch.spans["image"].states[-6:]], rtol=1e-5, atol=1e-5)
            continue
        batch = model.batch_builder()([[*sample, picture(way, 0)]])
        spans = batch.spans["image"]
        for _ in range(count):
            reading, found = next(kept)
            earlier = head.corrupt(spans)  # noised spans before this one are attended to by none of its tokens
            rows = model._states(batch, {"image": Read(spans, with_end(earlier, reading))}).output.flatten(0, 1)
            torch.testing.assert_close(found, rows[spans.states[-6:]], rtol=1e-5, atol=1e-5)
        if way == "noised context":  # where it is: training reads earlier spans as they were noised
            return
        sample.append(segment)
    assert next(kept, None) is None


def with_end(first: Reading, last: Reading) -> Reading:
    """A reading whose last rows are those of another."""
    ends = {}
    if last.values is None and first.values is not None:  # nothing is known yet
        last = last._replace(values=torch.zeros(6, 4), alone=torch.ones(6, dtype=torch.bool))
    for name in ("values", "added", "leads", "alone", "unknown"):
        whole, end = getattr(first, name), getattr(last, name)
        ends[name] = None if end is None or whole is None else torch.cat([whole[: len(whole) - len(end)], end])
    return Reading(**ends)


def teacher_forced(model: MultimodalModel, segments: list[Segment]) -> Tensor:
    """Logits of text after every token of a sample, as a prompt reads it."""
    batch = model.batch_builder()([segments], learn=False)
    return model.outputs["text"].logits(model.hidden(batch)[0])


@pytest.mark.parametrize("way", [way for way in HEADS if way != "placeholders"])
def test_text_after_an_image_reads_what_was_written(way: str) -> None:
    model = model_of(way)
    model.outputs["text"].weight.data[15] = 0  # the end is never the likeliest
    rule = grammar(way, num_images=1, stop=(15,))
    greedy = Generation(max_tokens=16, generator=3, sampling=GREEDY)
    written = [segment for _, segment in model.generate([[text([1, 2, BEGIN])]], rule, greedy)]
    image, after = written[0], written[1]
    assert isinstance(after, Text)
    ids = list(after.content)
    logits = teacher_forced(model, [text([1, 2, BEGIN]), image, text([END, *ids])])
    logits[:, [BEGIN, END]] = -torch.inf
    assert logits[-len(ids) - 1 : -1].argmax(dim=-1).tolist() == ids


@pytest.mark.parametrize("way", HEADS)
def test_equal_seeds_give_equal_images_whatever_stands_beside(way: str) -> None:
    model, rule = model_of(way), grammar(way)
    prompts: list[list[Segment]] = [[text([1, 2, BEGIN])], [text([BEGIN])], [text([4, 3, 2, 1, BEGIN])], [text([5, BEGIN])]]
    together = dict(model.generate(prompts, rule, Generation(generator=5)))
    ((_, alone),) = model.generate(prompts[:1], rule, Generation(generator=5))
    same(alone, together[0])
    again = dict(model.generate(prompts, rule, Generation(generator=5)))
    for row in range(4):
        same(together[row], again[row])
    if way not in ("placeholders", "of one's own"):  # where nothing is random
        with pytest.raises(AssertionError):
            same(together[0], dict(model.generate(prompts, rule, Generation(generator=6)))[0])


@pytest.mark.parametrize("way", HEADS)
def test_rows_may_be_in_different_ways_at_once(way: str) -> None:
    """One row writes an image of another size, one text, one begins its image later; each as if it were alone."""
    model = model_of(way)
    prompts: list[list[Segment]] = [[text([1, 2, BEGIN])], [text([3])], [text([4, 5, BEGIN])]]
    greedy = Generation(max_tokens=18, generator=5, sampling=GREEDY)
    rules = [grammar(way, stop=(0,)), grammar(way, num_images=0, stop=(0,)), grammar(way, stop=(0,), size=(1, 2))]
    together: dict[int, list[Segment]] = {}
    for row, segment in model.generate(prompts, rules, greedy):
        together.setdefault(row, []).append(segment)
    for row in (0, 1):
        ((_, *_), *_) = alone = list(model.generate([prompts[row]], rules[row], greedy))
        if row == 0:
            assert len(alone) == len(together[row])
            for (_, one), other in zip(alone, together[row], strict=True):
                same(one, other)
        else:
            assert [segment for _, segment in alone] == together[row]
    assert len(together[2]) == 2
