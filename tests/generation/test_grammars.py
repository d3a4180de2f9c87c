"""Sizes, formats without structure, published rules, continuous images, beams, streaming."""

from itertools import product

import pytest
import torch
from torch import nn

from mmblocks import GREEDY, Generation, GridFormat, GridGrammar, TextGrammar, codes, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.beam import beam_search
from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.generation.interleaved import segments_of
from mmblocks.models.emu3.prompts import fill_template, read_document, spell, token_id, token_name
from mmblocks.models.emu3.published_rules import Emu3PrefixGrammar, Emu35PublishedGrammar
from mmblocks.vocabulary import EMU3, EMU35
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import chameleon_format, raster_format
from tests.shared.tiny import EOS, FORMAT, TOKENIZER, VOCABULARY, WIDTH, tiny_model


def test_an_image_takes_the_size_of_the_one_before() -> None:
    reference = FORMAT.write(torch.zeros(2, 3, dtype=torch.long)).ids.tolist()
    for size in ("reference", "first"):
        grammar = GridGrammar(FORMAT, size=size, num_images=2)
        state = grammar.start([*reference, FORMAT.begin])
        for wanted in (*b"2*3", FORMAT.image):
            assert grammar.allowed(state) == ((wanted, wanted + 1),)
            state = grammar.advance(state, wanted)
    with pytest.raises(ValueError, match="the prompt holds no image"):
        GridGrammar(FORMAT, size="reference").start([97])
    assert len(GridGrammar(FORMAT, size="first").allowed(GridGrammar(FORMAT, size="first").start([FORMAT.begin]))) == 9


def test_chameleon_writes_1024_codes_between_two_ids() -> None:
    shuffled = torch.randperm(8192, generator=torch.Generator().manual_seed(0)) + 4
    form = chameleon_format(CodeIds(sizes=(8192,), table=tuple(shuffled.tolist())))
    grid = torch.randint(0, 8192, (32, 32), generator=torch.Generator().manual_seed(1))
    ids, place = form.write(grid)
    assert (int(ids[0]), int(ids[-1]), len(ids)) == (8197, 8196, 1026)
    assert torch.equal(ids[1:-1], shuffled[grid.flatten()])
    assert place[33].tolist() == [0, 1, 0]
    assert torch.equal(form.read_image(ids.tolist()), grid)
    grammar = GridGrammar(form, vocab_size=65536, stop=(2,))
    assert grammar.allowed(grammar.start()) == ((0, 4), (8197, 65536))  # the closing id stands in an image alone
    state = grammar.start(ids[:-2].tolist())
    assert grammar.allowed(state) == ((4, 8196),)
    state = grammar.advance(state, 4)
    assert grammar.allowed(state) == ((8196, 8197),)
    assert grammar.advance(state, 8196).mode == "text"


def test_formats_that_cannot_write_a_size_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed_size is None"):
        GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(4,), first=3))
    with pytest.raises(ValueError, match="only size of this format"):
        raster_format(2, 2, 5).write(torch.zeros(2, 3, dtype=torch.long))


def test_codes_among_which_other_ids_stand() -> None:
    form = GridFormat(begin=6, closing=(2,), codes=CodeIds(sizes=(4,), table=(8, 1, 7, 4)), fixed_size=(1, 4))
    ids = form.write(torch.tensor([[3, 0, 1, 2]])).ids.tolist()
    assert ids == [6, 4, 8, 1, 7, 2] and form.read([0, *ids])[1].tolist() == [[3, 0, 1, 2]]
    grammar = GridGrammar(form, vocab_size=11, stop=(10,))
    assert grammar.allowed(grammar.start()) == ((0, 1), (3, 4), (5, 7), (9, 11))
    assert grammar.allowed(grammar.start([6])) == ((1, 2), (4, 5), (7, 9))
    with pytest.raises(ValueError, match="do not follow the format"):
        form.read_image([6, 4, 8, 1, 5, 2])


def test_emu3s_own_rule_at_width_one_and_two() -> None:
    """Its test for row ends comes first and takes closing ids' places; ours writes them all."""
    row_end, (end_of_rows, end_of_image), eos, pad = EMU3.row_end, EMU3.closing, 7, 8
    for width, wanted in ((1, [row_end, end_of_rows, row_end, eos]), (2, [row_end, end_of_rows, end_of_image, row_end])):
        grammar = Emu3PrefixGrammar((1, width), eos=eos, pad=pad)
        state = grammar.start([EMU3.image])
        seen = []
        for _ in range(width + 4):
            first, stop = grammar.allowed(state)[0]
            seen.append(first if stop == first + 1 else -1)
            state = grammar.advance(state, first)
        assert seen == [-1] * width + wanted
        assert EMU3.expected(torch.arange(width + 3), 1, width).tolist()[width:] == [row_end, end_of_rows, end_of_image]


def test_emu35s_own_rule_writes_sizes_of_two_digits() -> None:
    grammar = Emu35PublishedGrammar()
    state = grammar.start([EMU35.begin])
    spelled = []
    while state.mode == "size":
        spelled.append(grammar.allowed(state)[-1][1] - 1)
        state = grammar.advance(state, spelled[-1])
    assert spelled == [24, 24, 9, 24, 24, EMU35.image]  # 99*99


def test_prompts_need_a_placeholder_for_each_image() -> None:
    grid = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="2 images for 0 placeholders"):
        fill_template("{question}", question="hi", images=[grid, grid])
    with pytest.raises(ValueError, match="1 images for 2 placeholders"):
        fill_template("<|IMAGE|> <|IMAGE|>", images=[grid])
    filled = fill_template("<|extra_203|>a<|IMAGE|>", images=[grid, grid])
    assert [type(s).__name__ for s in filled] == ["Text", "Text", "Codes", "Codes"]
    assert [kind for kind, _ in read_document(spell(filled[1:]))] == ["text", "image", "image"]
    assert all(token_id(token_name(i)) == i for i in (151643, 151846, 151851, 151853, 151854, 184621))


def test_continuous_images_are_written_by_their_own_head() -> None:
    """Text, four vectors, text: the vectors come from the head asked at their places, and are read by their embedder."""

    class Regression(nn.Module):
        def loss(self, hidden, target, weight=None):
            return (hidden[:, :5] - target).square().mean(-1)

        def sample(self, hidden, *, generator=None):
            return hidden[:, :5]

    model = tiny_model(
        inputs={"text": tiny_model().inputs["text"], "latent": nn.Linear(5, WIDTH)},
        outputs={"lm": tiny_model().outputs["lm"], "image": Regression()},
    ).eval()
    block = VectorBlock(begin=FORMAT.begin, end=FORMAT.closing[-1], size=(2, 2), head="image", input="latent")
    grammar = VectorGrammar(block, vocab_size=VOCABULARY, stop=(EOS,))
    prompts = [[text("draw"), text([FORMAT.begin])], [text([FORMAT.begin])], [text("tell")]]
    builder = model.batch_builder(TOKENIZER)
    steps = generate_ids(model, builder(prompts, padding="left"), grammar, Generation(max_tokens=7, sampling=GREEDY))
    found = list(segments_of(steps, grammar))
    drawn = {row: segment.values for row, segment in found if hasattr(segment, "values")}
    assert {row: tuple(values.shape) for row, values in drawn.items()} == {0: (2, 2, 5), 1: (2, 2, 5)}

    with torch.no_grad():  # the second vector, from everything read anew
        embeds = torch.cat([model.inputs["text"](torch.tensor([FORMAT.begin])), model.inputs["latent"](drawn[1][0, :1])])
        table = builder([[text([FORMAT.begin, FORMAT.begin])]]).table
        hidden = model.trunk(embeds[None], table)[0, -1]
    torch.testing.assert_close(drawn[1][0, 1], hidden[:5])


def test_heads_over_vectors_get_both_streams_where_they_know_them() -> None:
    given = []

    class Guided(nn.Module):
        def loss(self, hidden, target, weight=None):
            return (hidden[:, :5] - target).square().mean(-1)

        def sample(self, hidden, *, unconditional=None, guidance=None, generator=None):
            given.append((hidden, unconditional, guidance))
            return hidden[:, :5]

    model = tiny_model(
        inputs={"text": tiny_model().inputs["text"], "latent": nn.Linear(5, WIDTH)}, outputs={"image": Guided()}
    ).eval()
    block = VectorBlock(begin=FORMAT.begin, end=None, size=(1, 2), head="image", input="latent")
    begin = [text([FORMAT.begin])]
    grammar = VectorGrammar(block, vocab_size=VOCABULARY)
    (found,) = model.generate([[text([97]), *begin]], grammar, Generation(max_tokens=4, guidance=2.5), unconditional=[begin])
    assert (tuple(found.segment.values.shape), found.segment.input) == ((1, 2, 5), "latent")
    assert [scale for _, _, scale in given] == [2.5, 2.5]
    assert all(hidden.shape == other.shape and not torch.equal(hidden, other) for hidden, other, _ in given)


def test_beam_search_with_enough_beams_finds_the_likeliest_text() -> None:
    model = tiny_model().eval()
    grammar = SmallGrammar()
    batch = model.batch_builder(TOKENIZER)([[text("ab")], [text("x")]], padding="left")
    found = beam_search(model, batch, grammar, Generation(max_tokens=2), num_beams=9, length_penalty=0.0)
    for row, prompt in enumerate(("ab", "x")):
        scores = {}
        for ids in product((97, 98, 99), repeat=2):
            total = 0.0
            for count, next_id in enumerate(ids):
                sample = [text(prompt), text(list(ids[:count]))]
                with torch.no_grad():
                    logits = model.outputs["lm"].logits(model.hidden(model.batch_builder(TOKENIZER)([sample]))[0, -1])[97:100]
                total += float(logits.log_softmax(-1)[next_id - 97])
            scores[ids] = total
        best = max(scores, key=scores.get)
        assert found[row][0].ids == best
        assert found[row][0].score == pytest.approx(scores[best], abs=1e-4)


class SmallGrammar(TextGrammar):
    """Three ids, so that all texts can be listed."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)

    def allowed(self, state):
        return ((97, 100),)


def test_text_is_streamed_in_whole_characters() -> None:
    """An é has two bytes: it comes when both are there."""
    model = tiny_model().eval()
    script = list("né".encode())

    def follow(scores):
        forced = torch.full_like(scores.logits, float("-inf"))
        forced[:, script[scores.step]] = 0
        return forced

    found = model.generate(
        [[text("a")]], TextGrammar(VOCABULARY), Generation(max_tokens=3, hooks=[follow]), tokenizer=TOKENIZER, stream=True
    )
    assert [segment.content for _, segment in found] == ["n", "é"]


def test_rows_may_follow_grammars_of_their_own() -> None:
    model = tiny_model().eval()
    prompts = [[text([FORMAT.begin])], [text("ab"), text([FORMAT.begin])]]
    grammars = [GridGrammar(FORMAT, size=size) for size in ((1, 2), (2, 1))]
    found = dict(model.generate(prompts, grammars, Generation(max_tokens=20), tokenizer=TOKENIZER))
    assert {row: tuple(segment.grid.shape) for row, segment in found.items()} == {0: (1, 2), 1: (2, 1)}
    with pytest.raises(ValueError, match="2 grammars for 1 rows"):
        list(model.generate(prompts[:1], grammars, Generation(max_tokens=20)))


def test_ids_beyond_the_head_are_refused() -> None:
    model = tiny_model().eval()
    with pytest.raises(ValueError, match=r"allows ids 0 to \d+; the head LMHead writes ids 0 to"):
        list(model.generate([[text([97])]], TextGrammar(VOCABULARY + 1), Generation(max_tokens=1)))


def test_codes_of_a_prompt_keep_their_span() -> None:
    """Images that are written are numbered after those of the prompt."""
    model = tiny_model().eval()
    cache = model.trunk.new_cache(1, 60)
    prompt = [codes(torch.zeros(1, 1, dtype=torch.long), FORMAT), text([FORMAT.begin])]
    list(model.generate([prompt], GridGrammar(FORMAT, size=(1, 1)), Generation(max_tokens=20), cache=cache))
    assert cache.table.span.unique().tolist() == [-1, 0, 1]
