"""Whole grids of a format with row ends: codes are hidden and found, ids between them are given, beside codes one by one or not."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mmblocks import Generation, GridGrammar, LMHead, MultimodalModel, codes, text
from mmblocks.generation import ClassifierFree
from mmblocks.generation.grammar import may_hold_spans
from mmblocks.generation.parallel import with_noised_copies
from mmblocks.heads import MaskedCodesHead, ModalityLMHead
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens
from mmblocks.sequence import Reading
from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import sequential
from mmblocks.sequence.segments import Codes, Text
from mmblocks.vocabulary import CodeIds
from tests.shared.tiny import EOS, FORMAT, NUM_CODES, TOKENIZER, VOCABULARY, WIDTH, tiny_model

MASK = TOKENIZER["<eos>"]
SIZE, OPENED = (2, 3), FORMAT.head(2, 3)
STEPS = 3
WAYS = ("beside", "alone", "alone, next")


def a_model(way: str, **options) -> MultimodalModel:
    """An Emu3-like model whose images are filled in: beside codes one by one (DiDA), or alone (Show-o)."""
    torch.manual_seed(0)
    words = LMHead(dim=WIDTH, vocab_size=VOCABULARY)
    more = {"beside": {"predicts": "next", "learner": "lm"}, "alone": {}, "alone, next": {"predicts": "next"}}[way]
    inside = {"mask_id": MASK, "first": FORMAT.codes.start, "num_codes": NUM_CODES, "sampler": ConfidenceSampler(num_steps=STEPS)}
    image = MaskedCodesHead(head=words, **(inside | more | options))
    return tiny_model(outputs={"lm": words, "image": image}).eval()


def picture(seed: int, size: tuple[int, ...] = SIZE, **options) -> Codes:
    grid = torch.randint(NUM_CODES, size, generator=torch.Generator().manual_seed(seed))
    return codes(grid, FORMAT, **{"target": "image", **options})


def rule(**options) -> GridGrammar:
    return GridGrammar(FORMAT, size=SIZE, head="image", whole=True, **options)


def tokens(batch, chosen) -> list[int]:
    """What stands at some tokens, -1 where a head says what is read."""
    return batch.ids[0, chosen].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_ids_between_codes_are_given_and_never_hidden(way: str) -> None:
    model = a_model(way)
    batch = model.batch_builder(TOKENIZER)([[text("a"), picture(0), text("b", target="lm")], [text("abc"), picture(1, (1, 4))]])
    spans = batch.spans["image"]
    opening = way != "alone"
    assert spans.counts == (7 + opening, 4 + opening)  # codes and a row end; codes alone
    reading = model.outputs["image"].corrupt(spans, t=torch.zeros(2))  # all is hidden
    written = spans.written
    assert spans.rows()[~written].tolist() == ([OPENED[-1]] * opening + [FORMAT.row_end] + [OPENED[-1]] * opening)
    assert reading.values[~written].tolist() == spans.rows()[~written].tolist()
    assert (reading.values[written] == MASK).all() and torch.equal(reading.learned, written)
    few = model.outputs["image"].corrupt(spans, t=torch.ones(2))
    assert few.learned.sum() == 2 and (few.learned & written).sum() == 2  # one of each span
    assert torch.equal(batch.table.modality.flatten()[spans.places] == 1, written)
    assert torch.equal(spans.ids[written].unique(dim=0), torch.tensor([[FORMAT.codes.start, FORMAT.codes.stop]]))


def test_copies_stand_where_their_originals_stand_and_attend_to_what_comes_before() -> None:
    model = a_model("beside")
    batch = model.batch_builder(TOKENIZER)([[text("ab"), picture(0, structure=True), text("c", target="lm")]])
    table, noisy = batch.table, batch.table.noisy[0]
    clean = (~noisy).nonzero()[:, 0]
    first = tokens(batch, clean).index(OPENED[-1])
    assert tokens(batch, clean) == [*b"ab", *FORMAT.write(picture(0).grid).ids.tolist(), *b"c"]
    assert sequential(table)[0, noisy].tolist() == list(range(first, first + 8))
    assert sequential(table)[0, clean].tolist() == list(range(len(clean)))
    seen = visible(table)[0]
    assert seen[noisy][:, noisy].all() and not seen[clean][:, noisy].any()
    assert seen[noisy][:, clean].sum(dim=1).tolist() == [first] * 8
    assert torch.equal(seen[clean][:, clean], torch.ones(len(clean), len(clean), dtype=torch.bool).tril())


@pytest.mark.parametrize("structure", [False, True])
@pytest.mark.parametrize("pack", [None, 80])
def test_codes_one_by_one_are_learned_as_before(pack: int | None, structure: bool) -> None:
    model = a_model("beside")
    sizes = [(2, 3), (1, 4), (3, 1)]
    both, alone = (
        [
            [text("a" * n), picture(n, size, target=target, structure=structure, weight=n + 1.0), text("b", target="lm")]
            for n, size in enumerate(sizes)
        ]
        for target in ("image", "lm")
    )
    build = model.batch_builder(TOKENIZER)
    batch, plain = build(both, pack=pack), build(alone, pack=pack)
    assert_close(model(batch).token_losses["lm"], model(plain).token_losses["lm"])
    assert torch.equal(batch.targets["lm"].values, plain.targets["lm"].values)
    assert torch.equal(batch.weights["lm"], plain.weights["lm"])
    assert torch.equal(batch.spans["image"].weight, torch.tensor([1.0, 2.0, 3.0]))
    assert model(batch).token_losses["image"].shape == (3,)


def test_what_is_learned_is_what_the_former_copies_learned() -> None:
    """All hidden, the losses of the noised copies that a function laid out after the row."""
    model = a_model("beside")
    build = model.batch_builder(TOKENIZER)
    with pytest.warns(FutureWarning, match="with_noised_copies is"):
        former = with_noised_copies(
            build([[text("ab"), picture(0, target="lm")]]), MaskedTokens(mask_id=MASK, least=1.0), head="lm"
        )
    batch = build([[text("ab"), picture(0)]])
    wanted = model(former).token_losses["lm"][-6:].mean()
    assert_close(model(batch, given={"image": {"t": torch.zeros(1)}}).token_losses["image"][0], wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guidance", [None, ClassifierFree(scale=2.0)])
def test_every_pass_sees_what_training_shows(way: str, guidance) -> None:
    model = a_model(way)
    head, passes = model.outputs["image"], []
    write = head.write

    def recorded(spans, **options):
        writing = write(spans, **options)
        try:
            one = next(writing)
            while True:
                hidden = yield one
                passes.append((one.reading.values, hidden[0]))
                one = writing.send(hidden)
        except StopIteration as stop:
            return stop.value

    head.write = recorded
    opened = [text("ab"), text(OPENED)]
    options = Generation(generator=3, guidance=guidance, max_tokens=60)
    nothing = None if guidance is None else [[text(OPENED)]]
    written = list(model.generate([opened], rule(num_images=2, stop=(EOS,)), options, unconditional=nothing, tokenizer=TOKENIZER))
    image = written[0].segment
    assert isinstance(image, Codes) and tuple(image.grid.shape) == SIZE
    assert image.grid.min() >= 0 and image.grid.max() < NUM_CODES
    batch = model.batch_builder(TOKENIZER)([[text("ab"), picture(0), text("c")]])
    spans = batch.spans["image"]
    assert len(passes) >= STEPS
    for values, found in passes[:STEPS]:
        states = model.hidden(batch, readings={"image": Reading(values=values)}).flatten(0, 1)[spans.states]
        assert_close(found[spans.written], states[spans.written], rtol=1e-5, atol=1e-5)
    assert torch.equal(passes[0][0] == MASK, spans.written)


@pytest.mark.parametrize("way", WAYS)
def test_text_after_an_image_reads_what_was_written(way: str) -> None:
    model = a_model(way)
    greedy = Generation(generator=3, max_tokens=40)
    first, after = [one for _, one in model.generate([[text([*b"ab", *OPENED])]], rule(stop=(EOS,)), greedy)][:2]
    assert isinstance(after, Text) and len(after.content) > 3
    prompt = model.batch_builder(TOKENIZER)([[text("ab"), first, text(after.content[:3])]], learn=False)
    shown = tokens(prompt, ~prompt.table.is_padding[0])
    assert shown[: 2 + len(OPENED)] == [*b"ab", *OPENED] and shown[-5:-3] == list(FORMAT.closing)
    causal = torch.equal(visible(prompt.table)[0], torch.ones(len(shown), len(shown), dtype=torch.bool).tril())
    assert causal == (way == "beside")
    hidden = []
    model.trunk.register_forward_hook(lambda _, arguments, states: hidden.append(states[0, -1]))
    again = [one for _, one in model.generate([[text([*b"ab", *OPENED])]], rule(stop=(EOS,)), greedy)]
    assert again[1].content == after.content
    generated = hidden[1 + STEPS :]  # the image is read anew, then what closes it, then text
    expected = model.trunk(model.embed(prompt), prompt.table, mask=prompt.mask)[0, -6:]
    assert_close(torch.stack(generated[:6]), expected, rtol=1e-5, atol=1e-5)


def test_a_grid_takes_as_many_passes_as_the_sampler_has_steps() -> None:
    model, calls = a_model("beside"), []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    prompts = [[text(told), text(OPENED)] for told in ("one", "eleven")]
    made = dict(model.generate(prompts, rule(), Generation(generator=0), tokenizer=TOKENIZER))
    assert len(calls) == 1 + STEPS + len(
        FORMAT.closing
    )  # the prompt, the grid, its reading, and of what closes it all but the last
    ((_, alone),) = model.generate(prompts[:1], rule(), Generation(generator=0), tokenizer=TOKENIZER)
    assert torch.equal(alone.grid, made[0].grid)
    options = Generation(generator=0, previews=True)
    *previews, last = [one for _, one in model.generate(prompts[:1], rule(), options, tokenizer=TOKENIZER)]
    hidden = [int((one.segment.grid < 0).sum()) for one in previews]
    assert len(hidden) == STEPS - 1 and hidden == sorted(hidden, reverse=True) and torch.equal(last.grid, made[0].grid)


def test_no_other_ids_than_those_of_the_format_are_written() -> None:
    """A head over a whole vocabulary that likes text best, and a format of some of its codes."""
    few = replace(FORMAT, codes=CodeIds(sizes=(5,), first=FORMAT.codes.start + 2))
    model = a_model("alone", first=0, num_codes=VOCABULARY, mask_id=None)
    model.outputs["lm"].weight.data[: FORMAT.codes.start + 2] *= 1000
    grammar = GridGrammar(few, size=SIZE, head="image", whole=True)
    ((_, made),) = model.generate([[text(OPENED)]], grammar, Generation(generator=0))
    assert made.format == few and made.grid.min() >= 0 and made.grid.max() < 5
    more = replace(FORMAT, codes=CodeIds(sizes=(NUM_CODES + 1,), first=FORMAT.codes.start))
    small = a_model("alone")
    with pytest.raises(ValueError, match=r"spans hold ids from 263 to 275; accepted: the codes of this head, 263 to 274"):
        list(small.generate([[text(OPENED)]], GridGrammar(more, size=SIZE, head="image", whole=True), Generation(generator=0)))


def test_codes_of_several_levels_have_ids_of_their_own() -> None:
    levels = replace(FORMAT, codes=CodeIds(sizes=(4, 8), first=FORMAT.codes.start))
    model = a_model("alone")
    grammar = GridGrammar(levels, size=SIZE, head="image", whole=True)
    made, *previews = reversed(
        [one for _, one in model.generate([[text(OPENED)]], grammar, Generation(generator=0, previews=True))]
    )
    assert tuple(made.grid.shape) == (2, 3, 2) and made.grid[..., 0].max() < 4 and made.grid.min() >= 0
    assert all(tuple(one.segment.grid.shape) == (2, 3, 2) for one in previews)
    sample = [text("a"), codes(made.grid, levels, target="image")]
    assert model(model.batch_builder(TOKENIZER)([sample])).losses["image"] > 0


def test_a_head_over_codes_alone_has_their_own_ids() -> None:
    """A head of one modality learns and writes what the same rows of a whole vocabulary do."""
    model = a_model("alone")
    own = ModalityLMHead(dim=WIDTH, vocab_size=NUM_CODES, first=FORMAT.codes.start)
    own.weight.data = model.outputs["lm"].weight.data[FORMAT.codes.start :].clone()
    image = MaskedCodesHead(head=own, mask_id=MASK, first=FORMAT.codes.start, sampler=ConfidenceSampler(num_steps=STEPS))
    apart = MultimodalModel(inputs=dict(model.inputs.items()), trunk=model.trunk, outputs={"image": image}).eval()
    made = [next(one.generate([[text(OPENED)]], rule(), Generation(generator=0))).segment.grid for one in (model, apart)]
    assert torch.equal(*made)
    batch = apart.batch_builder(TOKENIZER)([[text("a"), picture(0)]])
    given = {"image": {"t": torch.zeros(1)}}
    losses = apart(batch, given=given).losses["image"], model.batch_builder(TOKENIZER)
    hidden = apart.hidden(batch, readings={"image": image.corrupt(batch.spans["image"], t=torch.zeros(1))})
    spans = batch.spans["image"]
    logits = own.logits(hidden[0][spans.states[spans.written]])
    assert_close(losses[0], torch.nn.functional.cross_entropy(logits, picture(0).grid.flatten()))


def test_a_shared_head_is_saved_once(tmp_path) -> None:
    model = a_model("beside")
    model.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert again.outputs["image"].head.weight is again.outputs["lm"].weight
    sample = [text("ab"), picture(0)]
    batch, given = again.batch_builder(TOKENIZER)([sample]), {"image": {"t": torch.zeros(1)}}
    assert model(batch, given=given).losses == again(batch, given=given).losses


def test_errors() -> None:
    with pytest.raises(ValueError, match="whole is True, head None"):
        GridGrammar(FORMAT, size=SIZE, whole=True)
    assert not may_hold_spans(GridGrammar(FORMAT, size=SIZE)) and may_hold_spans(rule())
    gaps = replace(FORMAT, codes=CodeIds(sizes=(2,), table=(FORMAT.codes.start, FORMAT.codes.start + 2)))
    with pytest.raises(ValueError, match="codes whose ids follow each other"):
        GridGrammar(gaps, size=SIZE, head="image", whole=True)
    with pytest.raises(ValueError, match="a prompt ends inside an image that is written whole"):
        rule().start([*OPENED, FORMAT.codes.start])
    build = a_model("beside").batch_builder(TOKENIZER)
    with pytest.raises(
        ValueError, match="0 tokens of the segment stand before the span of head 'image'; accepted: a format with 1"
    ):
        build([[text("a"), codes(torch.zeros(2, 2, dtype=torch.long), target="image")]])
    with pytest.raises(ValueError, match="clean copies of head 'image' are learned by 'words'; accepted: of \\['lm'\\]"):
        a_model("beside", learner="words").batch_builder(TOKENIZER)([[text("a"), picture(0)]])
    with pytest.raises(ValueError, match="context is 'read', opening 1"):
        a_model("beside", context="read")
