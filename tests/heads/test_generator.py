"""A head that writes images: its loss and its passes are the generator's, of the states at its queries."""

import pytest
import torch
from torch import Tensor

from mmblocks.connectors import MLPProjector
from mmblocks.heads import GeneratorHead, OutputMapper
from mmblocks.roles import SpanHead, lacks
from mmblocks.sequence.spans import Pass, Reading, Spans
from tests.pixels.networks import generator_of, values

SIZES = ((8, 12), (4, 8), (8, 12))
QUERIES, DIM = 3, 7


def head(**options) -> GeneratorHead:
    torch.manual_seed(3)
    return GeneratorHead(**({"dim": DIM, "num_queries": QUERIES, "generator": generator_of("sana")} | options)).eval()


def spans(images: list[Tensor] | None = None, sizes=SIZES) -> Spans:
    places = torch.arange(QUERIES * len(sizes))
    grid = torch.zeros(len(places), 3, dtype=torch.long)
    return Spans("image", sizes, (QUERIES,) * len(sizes), grid, places, places[:0], places, images, {}, None)


def images() -> list[Tensor]:
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(place)) for place, size in enumerate(SIZES)]


def hidden(*streams: int) -> Tensor:
    return values(*streams, QUERIES * len(SIZES), DIM, seed=4)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def written(made, states: Tensor) -> tuple[Pass, list[Tensor]]:
    """The one pass, and what comes of its states."""
    first = next(made)
    with pytest.raises(StopIteration) as stop:
        made.send(states)
    return first, stop.value.value


def latents(size: tuple[int, int], seed: int = 0) -> Tensor:
    return values(4, size[0] // 2, size[1] // 2, seed=seed)


@pytest.mark.parametrize("attends", ["span", "causal"])
def test_it_plays_its_role(attends) -> None:
    ours = head(attends=attends)
    assert not lacks(ours, SpanHead)
    assert (ours.span.writes, ours.span.context, ours.span.attends) == ("pixels", "read", attends)
    assert ours.span.whole and ours.span.count((8, 12)) == QUERIES and ours.span.predicts == "own"


def test_the_queries_are_read_and_what_is_random_is_sampled_before() -> None:
    ours = head()
    reading = ours.corrupt(spans(images()), generator=seeded())
    assert reading.values is None and torch.equal(reading.added, torch.cat([ours.queries] * 3))
    assert [group.spans for group in reading.learned] == [[0, 2], [1]]
    again = ours.corrupt(spans(images()), generator=seeded())
    assert torch.equal(
        ours.loss(hidden(), spans(images()), reading), ours.loss(hidden(), spans(images()), again)
    )  # nothing else is random
    other = ours.corrupt(spans(images()), generator=torch.Generator().manual_seed(6))
    assert not torch.equal(ours.loss(hidden(), spans(images()), reading), ours.loss(hidden(), spans(images()), other))


def test_losses_are_the_generators_span_by_span() -> None:
    ours = head()
    t, noise = torch.tensor([500, 20, 900]), [latents(size, place) for place, size in enumerate(SIZES)]
    states = hidden().requires_grad_()
    found = ours.loss(states, spans(images()), ours.corrupt(spans(images()), t=t, noise=noise))
    assert found.shape == (3,) and found.dtype == torch.float32
    for place, image in enumerate(images()):
        conditions = ours.connector(states[QUERIES * place : QUERIES * (place + 1)][None])
        wanted = ours.generator.loss(conditions, image[None], t=t[place : place + 1], noise=noise[place][None])
        torch.testing.assert_close(found[place : place + 1], wanted)
    found.sum().backward()
    assert bool((states.grad.abs().sum(dim=-1) > 0).all())


def test_one_pass_then_images_of_each_size() -> None:
    ours, states = head(), hidden(1)
    noise = [latents(size, place) for place, size in enumerate(SIZES)]
    first, made = written(ours.write(spans(), guide=lambda predicted: predicted[0], noise=noise), states)
    assert first.keep and first.part is None and torch.equal(first.reading.added, torch.cat([ours.queries] * 3))
    assert [tuple(image.shape) for image in made] == [(3, *size) for size in SIZES]
    for place, size in enumerate(SIZES):
        conditions = ours.connector(states[0, QUERIES * place : QUERIES * (place + 1)][None])
        wanted = ours.generator.sample(conditions, size=size, noise=noise[place][None])
        torch.testing.assert_close(made[place], wanted[0], rtol=1e-4, atol=1e-5)


def test_the_guide_combines_the_predictions_of_all_streams_in_each_step() -> None:
    ours, states = head(), hidden(2)
    shapes = []

    def guide(predicted: Tensor, strength: float = 1.0) -> Tensor:
        shapes.append(tuple(predicted.shape))
        return predicted[1] + 2.5 * strength * (predicted[0] - predicted[1])

    noise = [latents(size, place) for place, size in enumerate(SIZES)]
    _, made = written(ours.write(spans(), guide=guide, noise=noise), states)
    steps = ours.generator.sampler.num_steps
    assert shapes == [(2, 2, 4 * 4 * 6)] * steps + [(2, 1, 4 * 2 * 4)] * steps
    for place, size in enumerate(SIZES):
        own, nothing = (ours.connector(stream[QUERIES * place : QUERIES * (place + 1)][None]) for stream in states)
        wanted = ours.generator.sample(own, unconditional=nothing, guidance=2.5, size=size, noise=noise[place][None])
        torch.testing.assert_close(made[place], wanted[0], rtol=1e-4, atol=1e-5)


def test_a_generator_of_randomness_decides() -> None:
    ours = head()
    one, two = (
        written(ours.write(spans(), guide=lambda predicted: predicted[0], generator=seeded()), hidden(1))[1] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("dim", "connector", "parameters"),
    [(6, None, 0), (7, None, 2), (7, MLPProjector(in_dim=7, dim=6), None),
     (7, OutputMapper(dim=7, condition_dim=6, num_tokens=5, width=8, num_layers=1, num_heads=2), None)],
)  # fmt: skip
def test_connectors(dim, connector, parameters) -> None:
    ours = head(dim=dim, connector=connector)
    if parameters is not None:
        assert len(list(ours.connector.parameters())) == parameters
    states = values(QUERIES * 3, dim)
    assert ours.loss(states, spans(images()), ours.corrupt(spans(images()), generator=seeded())).shape == (3,)


def test_saved_and_loaded(tmp_path) -> None:
    for number, connector in enumerate((None, MLPProjector(in_dim=7, dim=6))):
        ours = head(connector=connector)
        ours.save_pretrained(tmp_path / str(number))
        again = GeneratorHead.from_pretrained(tmp_path / str(number))
        reading = ours.corrupt(spans(images()), generator=seeded())
        assert torch.equal(again.loss(hidden(), spans(images()), reading), ours.loss(hidden(), spans(images()), reading))
        assert again.config.keys() == ours.config.keys() and torch.equal(again.queries, ours.queries)


def test_no_spans() -> None:
    ours, none = head(), spans([], sizes=())
    reading = ours.corrupt(none)
    assert isinstance(reading, Reading) and reading.added.shape == (0, DIM)
    assert ours.loss(hidden()[:0], none, reading).shape == (0,)


def test_what_does_not_fit_is_named() -> None:
    ours = head()
    with pytest.raises(ValueError, match=r"values of spans are NoneType; accepted: a list of images"):
        ours.corrupt(spans())
    with pytest.raises(ValueError, match=r"size is \(8, 9\); accepted: multiples of \(2, 2\)"):
        ours.corrupt(spans([torch.rand(3, 8, 9)], sizes=((8, 9),)))
    with pytest.raises(ValueError, match=r"size is \(8, 9\)"):
        next(ours.write(spans(sizes=((8, 9),)), guide=lambda predicted: predicted[0]))
    with pytest.raises(ValueError, match=r"counts of spans are \(4, 3, 3\); accepted: 3 each"):
        ours.corrupt(spans(images())._replace(counts=(4, 3, 3)))
    with pytest.raises(ValueError, match="t has 2 entries; accepted: 3"):
        ours.corrupt(spans(images()), t=torch.tensor([1, 2]))
    reading = ours.corrupt(spans(images()))
    with pytest.raises(ValueError, match=r"hidden has shape \(9, 6\); accepted: \(9, 7\)"):
        ours.loss(values(9, 6), spans(images()), reading)
    with pytest.raises(ValueError, match="num_queries is 0"):
        head(num_queries=0)
    with pytest.raises(TypeError, match="generator is a MLPProjector, which cannot be used here"):
        head(generator=MLPProjector(in_dim=7, dim=6))
