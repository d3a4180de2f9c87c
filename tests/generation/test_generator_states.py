"""What a generator is conditioned on: states at queries or of the whole document, of the last layer or of several."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mmblocks import GREEDY, Block, Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, image, text
from mmblocks.connectors import MLPProjector
from mmblocks.generation import UnionGrammar, VectorBlock, VectorGrammar
from mmblocks.heads import GeneratorHead, SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.sequence import SpanLayout, vectors
from mmblocks.sequence.segments import Image
from mmblocks.trunks import StaticCache, hidden_states
from mmblocks.trunks.hooks import HookedTrunk, TrunkHooks
from tests.heads.test_generator import spans
from tests.pixels.networks import generator_of

DIM, BEGIN, END, SIZE, QUERIES = 16, 7, 8, (2, 3), 3
BLOCK = VectorBlock(begin=BEGIN, end=END, size=SIZE, head="image", input="none", whole=True)
OTHER = VectorBlock(begin=5, end=6, size=(1, 2), head="latents", input="latents", whole=True)


class Seen(NamedTuple):
    """Conditions that the generator was handed, without padding: image by image."""

    conditions: list[Tensor]


class Shows(Block):
    """A generator that makes nothing, and keeps what it is told: the loss is the mean of the real conditions."""

    condition_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def check_size(self, height: int, width: int) -> None:
        """Any."""

    def times_and_noise(self, count, size, *, device, generator=None):
        return torch.zeros(count), torch.zeros(count, 3, *size)

    def loss(self, conditions, images, *, real=None, t, noise):
        self._keep(conditions, real)
        real = torch.ones(conditions.shape[:2]) if real is None else real.float()
        return (conditions.mean(-1) * real).sum(1) / real.sum(1)

    def sample_guided(self, streams, guide, *, size, reals=None, noise=None, generator=None):
        for stream, real in zip(streams, reals or [None] * len(streams), strict=True):
            self._keep(stream, real)
        return torch.zeros(len(streams[0]), 3, *size)

    def _keep(self, conditions, real) -> None:
        real = torch.ones(conditions.shape[:2], dtype=torch.bool) if real is None else real
        self.seen.append(Seen([one[own].detach() for one, own in zip(conditions, real, strict=True)]))


KINDS = [("queries", ()), ("queries", (0, 1, 3)), ("document", ()), ("document", (2, 1))]


def model_of(states="queries", layers=(), *, context="clean", **options) -> MultimodalModel:
    torch.manual_seed(0)
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
    head = GeneratorHead(dim=DIM, num_queries=QUERIES, generator=Shows(), states=states, layers=layers, **options)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=DIM), "latents": torch.nn.Linear(4, DIM)},
        trunk=Decoder(dim=DIM, num_layers=3, num_heads=2, mlp_dim=32),
        outputs={
            "text": LMHead(dim=DIM, vocab_size=16),
            "image": head,
            "latents": SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler, context=context),
        },
    ).eval()


def wanted(model: MultimodalModel, sample, states: str, layers) -> Tensor:
    """The conditions of a sample that ends with an image, from one pass over it alone."""
    batch = model.batch_builder()([sample])
    head = model.outputs["image"]
    found = hidden_states(model.trunk, model.embed(batch), batch.table, layers or [model.trunk.num_layers], mask=batch.mask)
    own = torch.cat(found, dim=-1)[~batch.table.noisy]
    return head.connector((own[-QUERIES:] if states == "queries" else own)[None])[0].detach()


def picture():
    return image(torch.rand(3, *SIZE), target="image")


@pytest.mark.parametrize(("states", "layers"), KINDS)
def test_conditions_are_learned_from_the_states_of_whole_samples(states, layers) -> None:
    """Packed, with a second image in a document, a noised span and its clean copy before, and text that follows."""
    model = model_of(states, layers)
    latents = vectors(torch.randn(1, 2, 4), input="latents", target="latents")
    first, second, third = [text([1, 2, BEGIN]), picture()], [text([9, 5]), latents, text([6, 4, BEGIN]), picture()], [text([3])]
    again = [*first, text([END, 11, 12, BEGIN]), picture()]
    batch = model.batch_builder()([[*first, text([END, 3])], second, third, again], pack=40)
    output = model(batch, generator=torch.Generator().manual_seed(0))
    (seen,) = model.outputs["image"].generator.seen
    assert batch.table.noisy.any()
    samples = [first, second, first, again]
    for found, sample in zip(seen.conditions, samples, strict=True):
        torch.testing.assert_close(found, wanted(model, sample, states, layers), atol=1e-5, rtol=1e-5)
    output.losses["image"].backward()
    assert model.outputs["image"].queries.grad is not None
    text_only = model.inputs["text"].weight.grad[12].abs().sum()  # of a word before the last image alone
    assert bool(text_only > 0)


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize(("states", "layers"), KINDS)
def test_conditions_while_writing_are_those_of_whole_rows(states, layers, guidance) -> None:
    """After words that the model itself has written, after another image, and after a span of noised passes."""
    model = model_of(states, layers)
    prompts = [[text([1, 2, BEGIN])], [text([4, BEGIN])], [text([3, 3, 3, BEGIN])]]
    without = [] if guidance is None else [[text([9, BEGIN])], [text([BEGIN])], [text([9, 10, BEGIN])]]
    grammar = VectorGrammar(BLOCK, vocab_size=16, num_images=2)

    def opens(scores):
        if scores.step == 4:
            scores.logits[:] = float("-inf")
            scores.logits[:, BEGIN - scores.first] = 0
        else:
            scores.logits[:, BEGIN - scores.first] = float("-inf")
        return scores.logits

    options = Generation(max_tokens=20, sampling=GREEDY, generator=0, guidance=guidance, hooks=[opens])
    made: list[list] = [[], [], []]
    for row, segment in model.generate(prompts, grammar, options, unconditional=without or None):
        made[row].append(segment)
    assert all(isinstance(own[0], Image) and isinstance(own[-1], Image) and len(own) == 3 for own in made)
    # Both images of a row, stream after stream.
    seen = model.outputs["image"].generator.seen
    streams = [prompts] if guidance is None else [prompts, without]
    assert len(seen) == 2 * len(streams)
    for number, starts in enumerate(streams):
        for row, start in enumerate(starts):
            words = made[row][1].content
            first = [*start, picture()]
            second = [*first, text([END, *words, BEGIN]), picture()]
            for found, sample in ((seen[number], first), (seen[len(streams) + number], second)):
                torch.testing.assert_close(found.conditions[row], wanted(model, sample, states, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("states", "layers"), KINDS)
def test_passes_that_were_taken_back_are_no_part_of_a_document(states, layers) -> None:
    model = model_of(states, layers)
    prompt = [[text([1, 5])]]
    made: list = []

    def opens(scores):
        scores.logits[:] = float("-inf")
        scores.logits[:, BEGIN - scores.first] = 0
        return scores.logits

    grammar = UnionGrammar({"a": VectorGrammar(OTHER, vocab_size=16), "b": VectorGrammar(BLOCK, vocab_size=16)})
    options = Generation(max_tokens=12, sampling=GREEDY, generator=0, hooks=[opens])
    cache = StaticCache(model.trunk.new_cache(1, 30))
    for given in (None, cache):
        made = [segment for _, segment in model.generate(prompt, grammar, options, cache=given)]
        sample = [text([1, 5]), made[0], text([6, BEGIN]), picture()]
        found = model.outputs["image"].generator.seen[-1].conditions[0]
        torch.testing.assert_close(found, wanted(model, sample, states, layers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [(), (2, 1)])
def test_passes_over_a_span_that_is_read_as_it_was_noised_are_taken_back_too(layers) -> None:
    """They are no noised copies: only by being taken back they leave the document."""
    model = model_of("document", layers, context="read")
    grammar = UnionGrammar({"a": VectorGrammar(OTHER, vocab_size=16), "b": VectorGrammar(BLOCK, vocab_size=16)})

    def opens(scores):
        scores.logits[:] = float("-inf")
        scores.logits[:, BEGIN - scores.first] = 0
        return scores.logits

    list(model.generate([[text([1, 5])]], grammar, Generation(max_tokens=12, sampling=GREEDY, generator=0, hooks=[opens])))
    (found,) = model.outputs["image"].generator.seen[-1].conditions
    assert len(found) == len((1, 5)) + 2 + len((6, BEGIN)) + QUERIES


def test_a_connector_reads_documents_one_by_one() -> None:
    """So that what it makes of one does not depend on how long others are."""

    class Joins(Block):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(DIM, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x.mean(dim=1, keepdim=True))

    model = model_of("document", connector=Joins())
    samples = [[text([1, BEGIN]), picture()], [text([1, 2, 3, 4, BEGIN]), picture()]]
    model(model.batch_builder()(samples))
    for found, sample in zip(model.outputs["image"].generator.seen[0].conditions, samples, strict=True):
        assert found.shape == (1, 5)
        torch.testing.assert_close(found, wanted(model, sample, "document", ()), atol=1e-5, rtol=1e-5)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs\['image'\] is given states of layers \(1, 4\); accepted: 0 to 3"):
        model_of("queries", (1, 4))
    with pytest.raises(ValueError, match="layers is"):
        model_of("queries", (-1,))
    with pytest.raises(ValueError, match="predicts is 'next'"):
        SpanLayout(predicts="next", layers=(1,))
    model = model_of("queries", (1,))
    with pytest.raises(TypeError, match=r"layers \(1,\), and trunk is a HookedTrunk; accepted: a trunk with hooks"):
        MultimodalModel(
            inputs=dict(model.inputs.items()), trunk=HookedTrunk(model.trunk, TrunkHooks()), outputs=dict(model.outputs.items())
        )

    class Unmasked(Shows):
        def loss(self, conditions, images, *, t, noise):
            return conditions.mean((1, 2))

    GeneratorHead(dim=DIM, num_queries=1, generator=Unmasked())
    with pytest.raises(TypeError, match=r"generator is a Unmasked, .* its loss takes"):
        GeneratorHead(dim=DIM, num_queries=1, generator=Unmasked(), states="document")
    head = GeneratorHead(dim=DIM, num_queries=3, generator=Shows(), layers=(0, 1))
    one = spans([torch.rand(3, 8, 8)], sizes=((8, 8),))
    with pytest.raises(ValueError, match=r"hidden has shape \(3, 16\); accepted: \(3, 32\)"):
        head.loss(torch.zeros(3, DIM), one, head.corrupt(one))


def test_documents_of_several_layers_are_saved_with_their_head(tmp_path) -> None:
    head = GeneratorHead(
        dim=DIM,
        num_queries=2,
        generator=generator_of("sana"),
        connector=MLPProjector(in_dim=2 * DIM, dim=6),
        states="document",
        layers=(1, 2),
    )
    head.save_pretrained(tmp_path)
    again = GeneratorHead.from_pretrained(tmp_path)
    assert again.span == head.span and again.dim == 2 * DIM
