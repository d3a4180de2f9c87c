"""Several kinds of images in one reply."""

import pytest
import torch
from torch import nn

from mmblocks import GREEDY, Decoder, Generation, GridFormat, GridGrammar, LMHead, MultimodalModel, TextEmbedding, text
from mmblocks.generation import UnionGrammar, VectorBlock, VectorGrammar
from mmblocks.heads import MaskedCodesHead, SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.sequence.segments import Codes, Segment, Text, Vectors
from mmblocks.vocabulary import CodeIds

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
