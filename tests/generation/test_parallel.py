"""Former functions for noised copies and whole grids work as they did; see ``test_whole_grids`` for what took their place."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mmblocks import GREEDY, Generation, GridFormat, GridGrammar, LMHead, TextEmbedding, codes, text
from mmblocks.generation import ClassifierFree
from mmblocks.generation.parallel import copy_positions, draw_grids, sample_grids, with_noised_copies
from mmblocks.heads import ModalityLMHead
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import sequential
from mmblocks.vocabulary.code_ids import CodeIds
from tests.shared.tiny import FORMAT, NUM_CODES, TOKENIZER, VOCABULARY, WIDTH, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:(with_noised_copies|sample_grids) is:FutureWarning")
MASK = TOKENIZER["<eos>"]
HIDE = MaskedTokens(mask_id=MASK)
SAMPLER = ConfidenceSampler(num_steps=3)


def parallel_model(**options):
    model = tiny_model(**options).eval()
    model.trunk.positions = copy_positions
    return model


def a_batch(model, *sizes: tuple[int, int], **options) -> Batch:
    torch.manual_seed(1)
    samples = [
        [text("a" * (2 + number)), codes(torch.randint(NUM_CODES, size), FORMAT, target="lm"), text("b", target="lm")]
        for number, size in enumerate(sizes)
    ]
    return model.batch_builder(TOKENIZER)(samples, **options)


def test_copies_stand_where_their_originals_stand() -> None:
    model = parallel_model()
    batch = a_batch(model, (2, 3), (1, 4))
    noised = with_noised_copies(batch, HIDE, head="lm", generator=torch.Generator().manual_seed(0))
    length = batch.ids.shape[1]
    positions = copy_positions(noised.table)
    assert torch.equal(positions[:, :length], sequential(batch.table))
    copies = noised.table.noisy
    for row in range(2):
        copied = noised.ids[row, copies[row]]
        first = int((batch.table.modality[row] == 1).nonzero()[0]) - 1
        assert positions[row, copies[row]].tolist() == list(range(first, first + len(copied)))
        same = copied != MASK
        assert torch.equal(copied[same], batch.ids[row, first : first + len(copied)][same])
        assert 1 <= int((~same).sum()) <= (6, 4)[row]


def test_copies_see_what_comes_before_the_image_and_themselves() -> None:
    model = parallel_model()
    batch = a_batch(model, (2, 3))
    noised = with_noised_copies(batch, HIDE, head="lm")
    seen = visible(noised.table)[0]
    copy = noised.table.noisy[0]
    first = int((batch.table.modality[0] == 1).nonzero()[0]) - 1
    assert seen[copy][:, copy].all()
    assert seen[copy][:, :first].all()
    assert not seen[copy][:, first : batch.ids.shape[1]].any()
    assert not seen[~copy][:, copy].any()


@pytest.mark.parametrize("pack", [None, 80])
def test_the_old_objective_is_unchanged_and_hidden_codes_are_learned(pack: int | None) -> None:
    model = parallel_model()
    batch = a_batch(model, (2, 3), (1, 4), (3, 1), pack=pack)
    noised = with_noised_copies(batch, HIDE, head="lm", generator=torch.Generator().manual_seed(0))
    plain, both = model(batch).token_losses["lm"], model(noised).token_losses["lm"]
    assert_close(both[: len(plain)], plain)
    assert len(both) - len(plain) == int((noised.ids[noised.table.noisy] == MASK).sum())
    learned = noised.targets["lm"].values[len(plain) :]
    assert ((learned >= TOKENIZER.vocab_size) & (learned < VOCABULARY)).all()
    assert (noised.table.target >= 0).sum() == len(both)


def test_one_pass_predicts_what_a_fully_hidden_copy_predicts() -> None:
    """The sampler's passes and the adaptation see the same: with a cache, after padding, and without."""
    model = parallel_model()
    batch = a_batch(model, (2, 3))
    everything = MaskedTokens(mask_id=MASK, least=1.0)
    noised = with_noised_copies(batch, everything, head="lm")
    hidden = model.hidden(noised).flatten(0, 1)[noised.targets["lm"].places[-6:]]
    expected = model.outputs["lm"].logits(hidden, FORMAT.codes.start, FORMAT.codes.stop)
    seen = []

    class Spy(ConfidenceSampler):
        def stepwise(self, ids, mask_id, **options):
            for step in (0, 1):
                seen.append((yield ids, step))
            return (yield from super().stepwise(ids, mask_id, **options))

    prompts = [[text("aa"), text(FORMAT.head(2, 3))], [text("aaaaaa"), text(FORMAT.head(2, 3))]]
    prompt = model.batch_builder(TOKENIZER)(prompts, padding="left")
    sample_grids(model, prompt, GridGrammar(FORMAT, size=(2, 3)), Spy(num_steps=1), mask_id=MASK)
    for logits in seen:
        assert_close(logits[0], expected)


@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_grids_are_drawn_in_a_few_passes(size: tuple[int, int]) -> None:
    model = parallel_model()
    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    rows = [[text(told), text(FORMAT.head(*size))] for told in ("one", "eleven", "", "")]
    prompt = model.batch_builder(TOKENIZER)(rows, padding="left")
    options = Generation(guidance=ClassifierFree(scale=2.0), generator=0)
    drawn, again = (sample_grids(model, prompt, GridGrammar(FORMAT, size=size), SAMPLER, options, mask_id=MASK) for _ in range(2))
    assert len(calls) == 2 * (1 + SAMPLER.num_steps)
    assert drawn.shape == (2, *size)
    assert torch.equal(drawn, again)
    assert drawn.min() >= 0
    assert drawn.max() < NUM_CODES


def test_errors() -> None:
    model = parallel_model()
    build = model.batch_builder(TOKENIZER)
    with pytest.raises(ValueError, match="no image of codes"):
        with_noised_copies(build([[text("a"), text("b", target="lm")]]), HIDE, head="lm")
    prompt, grammar = build([[text("a")]], padding="left"), GridGrammar(FORMAT, size=(2, 3))
    with pytest.raises(ValueError, match="does not end with"):
        sample_grids(model, prompt, grammar, SAMPLER, mask_id=MASK)
    with pytest.raises(ValueError, match="size of the grammar is 'first'; accepted"):
        sample_grids(model, prompt, GridGrammar(FORMAT, size="first"), SAMPLER, mask_id=MASK)
    with pytest.raises(ValueError, match="options set max_tokens, sampling, which sample_grids does not use"):
        sample_grids(model, prompt, grammar, SAMPLER, Generation(max_tokens=6, sampling=GREEDY), mask_id=MASK)
    bare = GridFormat(begin=None, closing=(), codes=FORMAT.codes, fixed_size=(2, 3))
    with pytest.raises(ValueError, match="does not end with"):
        sample_grids(model, prompt, GridGrammar(bare), SAMPLER, mask_id=MASK)
    shuffled = replace(FORMAT, codes=CodeIds(sizes=(2,), table=(FORMAT.codes.start + 1, FORMAT.codes.start)))
    opened = build([[text(FORMAT.head(2, 3))]], padding="left")
    with pytest.raises(ValueError, match="codes have a table"):
        sample_grids(model, opened, GridGrammar(shuffled, size=(2, 3)), SAMPLER, mask_id=MASK)
    with pytest.raises(ValueError, match="begins a document"):
        with_noised_copies(build([[codes(torch.zeros(2, 3, dtype=torch.long), bare, target="lm")]]), HIDE, head="lm")


def test_the_former_name_still_samples() -> None:
    model = parallel_model()
    prompt = model.batch_builder(TOKENIZER)([[text("a"), text(FORMAT.head(2, 3))]], padding="left")
    options = Generation(generator=torch.Generator().manual_seed(0))
    wanted = sample_grids(model, prompt, GridGrammar(FORMAT, size=(2, 3)), SAMPLER, options, mask_id=MASK)
    with pytest.warns(FutureWarning, match="draw_grids is sample_grids"):
        found = draw_grids(
            model, prompt, FORMAT, SAMPLER, size=(2, 3), mask_id=MASK, generator=torch.Generator().manual_seed(0), guidance=None
        )
    assert torch.equal(found, wanted)


def test_no_text_stands_in_an_image_whatever_a_head_would_rather_write() -> None:
    """The codes of the grammar alone are looked at, by the head and the embedder that it names."""
    model = parallel_model()
    words = model.outputs["lm"]
    words.weight.data[: FORMAT.codes.start] *= 1000
    prompt = model.batch_builder(TOKENIZER)([[text("one"), text(FORMAT.head(2, 3))]], padding="left")
    options = Generation(generator=0)
    found = sample_grids(model, prompt, GridGrammar(FORMAT, size=(2, 3)), SAMPLER, options, mask_id=MASK)
    assert found.min() >= 0 and found.max() < NUM_CODES

    own = ModalityLMHead(dim=WIDTH, vocab_size=NUM_CODES, first=FORMAT.codes.start)
    own.weight.data = words.weight.data[FORMAT.codes.start :].clone()
    readers = {"text": TextEmbedding(vocab_size=FORMAT.codes.start, dim=WIDTH), "pictures": model.inputs["text"]}
    readers["text"].weight.data = model.inputs["text"].weight.data[: FORMAT.codes.start].clone()
    apart = parallel_model(inputs=readers, outputs={"words": words, "codes": own})
    with torch.no_grad():  # each embedder is read where it should be
        apart.inputs["text"].weight[MASK] = 1e3
        apart.inputs["pictures"].weight[FORMAT.row_end] = 1e3
    grammar = GridGrammar(FORMAT, size=(2, 3), head="codes", input="pictures")
    assert torch.equal(sample_grids(apart, prompt, grammar, SAMPLER, options, mask_id=MASK), found)
    small = parallel_model(outputs={"words": LMHead(dim=WIDTH, vocab_size=FORMAT.codes.start)})
    with pytest.raises(ValueError, match="the head 'words' writes ids 0 to"):
        sample_grids(small, prompt, GridGrammar(FORMAT, size=(2, 3)), SAMPLER, Generation(head="words"), mask_id=MASK)


def test_logits_of_a_whole_vocabulary_are_cut_to_the_codes() -> None:
    logits = torch.randn(2, 6, VOCABULARY)
    logits[..., MASK], logits[..., 0] = 50, 40
    hidden = torch.full((2, 6), MASK)
    allowed = FORMAT.codes.allowed(VOCABULARY)
    found = SAMPLER.sample(lambda ids, step: logits, hidden, MASK, allowed=allowed, generator=torch.Generator().manual_seed(0))
    assert FORMAT.codes.is_code(found).all()
    assert not FORMAT.codes.is_code(SAMPLER.sample(lambda ids, step: logits, hidden, MASK)).any()
    with pytest.raises(ValueError, match="allowed has shape"):
        SAMPLER.sample(lambda ids, step: logits, hidden, MASK, allowed=allowed[1:])
