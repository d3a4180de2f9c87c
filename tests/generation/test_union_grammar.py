"""Several kinds of images in one reply."""

import pytest
import torch
from torch import nn

from mmblocks import GREEDY, Decoder, Generation, GridFormat, GridGrammar, LMHead, MultimodalModel, TextEmbedding, text
from mmblocks.embedders import DepthCodeEmbedding
from mmblocks.generation import UnionGrammar, VectorBlock, VectorGrammar
from mmblocks.heads import DepthCodeHead, MaskedCodesHead, SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.sequence.segments import Codes, Segment, Text, Vectors
from mmblocks.vocabulary import CodeIds, DepthCodeFormat

VOCAB = 24
FORM = GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(8,), first=10), fixed_size=(1, 2))
LATENTS = VectorBlock(begin=3, end=4, size=(1, 2), head="latents", input="latents", whole=True)
MASKED = VectorBlock(begin=5, end=6, size=(2, 2), head="masked", input="codes", whole=True)


def union(num_images: int = 1, stop: tuple[int, ...] = ()) -> UnionGrammar:
    return UnionGrammar(
        {
            "codes": GridGrammar(FORM, vocab_size=VOCAB, num_images=num_images, stop=stop),
            "latents": VectorGrammar(LATENTS, vocab_size=VOCAB, num_images=num_images, stop=stop),
            "masked": VectorGrammar(MASKED, vocab_size=VOCAB, num_images=num_images, stop=stop),
        }
    )


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    torch.manual_seed(0)
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
    return MultimodalModel(
        inputs={
            "text": TextEmbedding(vocab_size=VOCAB, dim=32),
            "latents": nn.Linear(4, 32),
            "codes": TextEmbedding(vocab_size=6, dim=32),
        },
        trunk=Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48),
        outputs={
            "text": LMHead(dim=32, vocab_size=VOCAB),
            "latents": SpanDenoisingHead(dim=32, channels=4, sampler=sampler),
            "masked": MaskedCodesHead(head=LMHead(dim=32, vocab_size=5), mask_id=5, sampler=ConfidenceSampler(num_steps=2)),
        },
    ).eval()


def test_a_reply_holds_text_and_three_kinds_of_images(model: MultimodalModel) -> None:
    made = list(model.generate([[text([9, 3])], [text([1])]], union(), Generation(max_tokens=400, generator=1)))
    for row in (0, 1):
        own = [segment for index, segment in made if index == row]
        kinds = [type(segment) for segment in own if not isinstance(segment, Text)]
        assert sorted(kind.__name__ for kind in kinds) == ["Codes", "Codes", "Vectors"]
        assert {tuple(segment.grid.shape) for segment in own if isinstance(segment, Codes)} == {(1, 2), (2, 2)}
        written = [i for segment in own if isinstance(segment, Text) for i in segment.content]
        assert not set(written) & {1, 2, 3, 4, 5, 6, *range(10, 18)}  # nothing that opens, closes, or is a code
    assert isinstance(made[0][1], Vectors | Codes)


def test_a_kind_that_is_exhausted_is_not_opened_again() -> None:
    grammar = union()
    state = grammar.start()
    for next_id in (1, 10, 11, 2):
        state = grammar.advance(state, next_id)
    assert state.num_images == 1
    allowed = {i for first, stop in grammar.allowed(state) for i in range(first, stop)}
    assert 1 not in allowed
    assert {3, 5} <= allowed


def test_a_stop_id_ends_the_row_and_text_goes_on_until_then() -> None:
    grammar = union(stop=(0,))
    state = grammar.start([9, 3])
    assert grammar.describe(state).writes == "span"
    state = grammar.advance(grammar.advance(state, -1), 4)
    assert state.mode == "text"
    assert grammar.advance(state, 0).mode == "done"


def test_what_no_kind_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="id 12 cannot stand in text"):
        union().advance(union().start(), 12)
    with pytest.raises(ValueError, match="kinds is empty"):
        UnionGrammar({})


def test_greedy_text_is_that_of_the_whole_row_read_anew(model: MultimodalModel) -> None:
    made = [
        s for _, s in model.generate([[text([9, 3])]], union(stop=(0,)), Generation(max_tokens=30, sampling=GREEDY, generator=1))
    ]
    image, after = made[0], made[1]
    assert isinstance(image, Vectors)
    assert isinstance(after, Text)
    sample: list[Segment] = [text([9, 3]), image, text([4, *after.content])]
    batch = model.batch_builder()([sample], learn=False)
    logits = model.outputs["text"].logits(model.trunk(model.embed(batch), batch.table)[0])
    logits[:, [2, 4, 6, 10, 11, 12, 13, 14, 15, 16, 17, 3]] = -torch.inf
    count = len(after.content)
    assert logits[-count - 1 : -1].argmax(dim=-1).tolist() == list(after.content)


def test_what_heads_choose_among_is_known_beforehand() -> None:
    """Codes of each kind, and the text that all of them allow; so that a head which cannot write them is refused at once."""
    grammar = union(stop=(0,))
    state = grammar.start()
    text_ids = grammar.allowed(state)
    assert grammar.choices(state) == [(None, ((10, 18),)), (None, text_ids)]
    in_codes = grammar.advance(state, 1)
    assert grammar.choices(in_codes) == [(None, ((10, 18),)), (None, text_ids)]
    assert grammar.choices(grammar.advance(state, 0)) == []

    # The kinds' own text, which goes further than that of the union, is none of it.
    short = UnionGrammar({"codes": GridGrammar(FORM, vocab_size=VOCAB), "words": VectorGrammar(LATENTS, vocab_size=10)})
    assert short.choices(short.start())[-1] == (None, ((0, 2), (3, 4), (5, 10)))
    alone = UnionGrammar({"codes": GridGrammar(FORM, vocab_size=VOCAB, head="vision")})
    assert alone.choices(alone.start([9, 1])) == [("vision", ((10, 18),))]  # the row ends with the image
    nested = UnionGrammar({"codes": alone, "latents": VectorGrammar(LATENTS, vocab_size=VOCAB)})
    assert nested.choices(nested.start())[0] == ("vision", ((10, 18),))


def test_heads_that_cannot_write_a_kind_are_refused_before_anything_is_read(model: MultimodalModel, monkeypatch) -> None:
    monkeypatch.setattr(type(model.trunk), "forward", lambda *_, **__: pytest.fail("the prompt was read"))
    wide = GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(80,), first=10), fixed_size=(1, 2))
    grammar = UnionGrammar({"wide": GridGrammar(wide), "latents": VectorGrammar(LATENTS, vocab_size=90)})
    with pytest.raises(ValueError, match="ids 10 to 89; the head LMHead writes ids 0 to 23"):
        list(model.generate([[text([9])]], grammar, Generation(max_tokens=4)))


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("delays", [None, (0, 1, 2), (0, 2, 2)])
def test_levels_of_a_kind_are_those_of_its_own_grammar(delays: tuple[int, ...] | None, guidance: float | None) -> None:
    """Delayed codes in one row, codes of another kind beside them in the next: each as if its grammar were alone."""
    torch.manual_seed(0)
    form = DepthCodeFormat(sizes=(7, 6, 5), delays=delays)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=VOCAB, dim=32), "depth": DepthCodeEmbedding(sizes=form.sizes, dim=32)},
        trunk=Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48),
        outputs={"text": LMHead(dim=32, vocab_size=VOCAB), "depth": DepthCodeHead(dim=32, sizes=form.sizes)},
    ).eval()
    block = VectorBlock(begin=3, end=4, size=(2, 3), head="depth", input="depth", format=form)
    kinds = {"codes": GridGrammar(FORM, vocab_size=VOCAB), "depth": VectorGrammar(block, vocab_size=VOCAB)}
    options = Generation(max_tokens=12, sampling=GREEDY, guidance=guidance)

    def images(grammar, *prompts: list[int]) -> list[torch.Tensor]:
        without = None if guidance is None else [[text([7, prompt[-1]])] for prompt in prompts]
        found = model.generate([[text(prompt)] for prompt in prompts], grammar, options, unconditional=without)
        made = {row: segment.grid for row, segment in reversed(list(found)) if isinstance(segment, Codes)}
        return [made[row] for row in range(len(prompts))]

    together = images(UnionGrammar(kinds), [9, 3], [8, 1], [5, 3])
    assert [tuple(one.shape) for one in together] == [(2, 3, 3), (1, 2), (2, 3, 3)]
    for found, own, prompt in zip(together, ("depth", "codes", "depth"), ([9, 3], [8, 1], [5, 3]), strict=True):
        assert torch.equal(found, images(kinds[own], prompt)[0])
