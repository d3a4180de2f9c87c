"""The loop against a plain one without cache; grammars; guidance; interleaved output."""

from dataclasses import replace

import pytest
import torch

from mmblocks import GREEDY, Generation, GridGrammar, Sampling, TextGrammar, codes, image, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.grammar import State
from mmblocks.generation.guidance import classifier_free
from mmblocks.sequence.segments import Codes, Text
from mmblocks.vocabulary.code_ids import CodeIds
from tests.shared.tiny import EOS, FORMAT, NUM_CODES, TOKENIZER, VOCABULARY, tiny_model


def prompts():
    photo = torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(4))
    return [[text("what is it? "), image(photo), text(" ")], [text("a")]]


def greedy_without_cache(model, prompt, steps: int) -> list[int]:
    """Reads the whole sample anew for every token."""
    written: list[int] = []
    for _ in range(steps):
        batch = model.batch_builder(TOKENIZER)([[*prompt, text(written)]])
        logits = model.outputs["lm"].logits(model.hidden(batch)[0, -1])
        written.append(int(logits.argmax()))
        if written[-1] == EOS:
            break
    return written


@torch.no_grad()
def test_greedy_generation_equals_reading_everything_anew() -> None:
    model = tiny_model().eval()
    batch = model.batch_builder(TOKENIZER)(prompts(), padding="left")
    steps = list(generate_ids(model, batch, TextGrammar(VOCABULARY, (EOS,)), Generation(max_tokens=9, sampling=GREEDY)))
    for row, prompt in enumerate(prompts()):
        wanted = greedy_without_cache(model, prompt, 9)
        assert [int(step.ids[row]) for step in steps][: len(wanted)] == wanted


def test_a_batch_generates_what_single_rows_do_with_the_same_draws() -> None:
    """Sampling draws noise for the whole batch, so rows are compared under greedy decoding with guidance."""
    model = tiny_model().eval()
    options = Generation(max_tokens=6, sampling=GREEDY, guidance=2.5)
    grammar = TextGrammar(VOCABULARY, (EOS,))
    together = list(model.generate(prompts(), grammar, options, unconditional=[[text(" ")]] * 2, tokenizer=TOKENIZER))
    for row, prompt in enumerate(prompts()):
        (alone,) = model.generate([prompt], grammar, options, unconditional=[[text(" ")]], tokenizer=TOKENIZER)
        assert alone.segment == dict(together)[row]


@torch.no_grad()
def test_guidance_in_one_forward_equals_two_models() -> None:
    model = tiny_model().eval()
    conditional, unconditional = [text("seven "), text("7")], [text("7")]
    batch = model.batch_builder(TOKENIZER)([conditional, unconditional], padding="left")
    (step,) = generate_ids(model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=1, sampling=GREEDY, guidance=3.0))
    logits = [
        model.outputs["lm"].logits(model.hidden(model.batch_builder(TOKENIZER)([sample]))[:, -1])
        for sample in (conditional, unconditional)
    ]
    assert int(step.ids) == int(classifier_free(*logits, 3.0).argmax())
    c, u = (values.log_softmax(-1) for values in logits)
    torch.testing.assert_close(classifier_free(*logits, 3.0), u + 3 * (c - u))


def test_guidance_of_one_is_the_condition_alone_and_zero_none_of_it() -> None:
    c, u = torch.randn(2, 5, 7)
    torch.testing.assert_close(classifier_free(c, u, 1.0).softmax(-1), c.softmax(-1))
    torch.testing.assert_close(classifier_free(c, u, 0.0).softmax(-1), u.softmax(-1))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2)])
def test_generated_images_have_the_size_and_format_asked(size) -> None:
    model = tiny_model().eval()
    grammar = GridGrammar(FORMAT, size=size)
    starts = [[text("draw"), text([FORMAT.begin])], [text([FORMAT.begin])]]
    generator = torch.Generator().manual_seed(0)
    found = list(model.generate(starts, grammar, Generation(max_tokens=40, generator=generator), tokenizer=TOKENIZER))
    assert sorted(row for row, _ in found) == [0, 1]
    for _, segment in found:
        assert isinstance(segment, Codes)
        assert segment.grid.shape == size
        assert segment.grid.min() >= 0 and segment.grid.max() < NUM_CODES


def test_text_and_images_come_interleaved_and_can_be_read_again() -> None:
    """A head that writes 'a', opens an image, and so on: what comes out is what the format would write."""
    model = tiny_model().eval()
    wanted = [text("ab"), codes(torch.tensor([[3, 1]]), FORMAT), text("c")]
    script = [*b"ab", *FORMAT.write(torch.tensor([[3, 1]])).ids.tolist(), *b"c", EOS]
    scripted_head(model, script)
    grammar = GridGrammar(FORMAT, num_images=2, stop=(EOS,))
    found = [s for _, s in model.generate([[text("?")]], grammar, Generation(max_tokens=50, sampling=GREEDY), tokenizer=TOKENIZER)]
    assert [type(segment) for segment in found] == [Text, Codes, Text]
    assert (found[0], found[2]) == (wanted[0], wanted[2])
    assert torch.equal(found[1].grid, wanted[1].grid)
    ids = model.batch_builder(TOKENIZER)([[text("?"), *found]]).ids[0].tolist()
    assert ids == [*b"?", *script[:-1]]


def test_each_rows_images_are_in_its_own_grammars_format() -> None:
    """Formats whose codes overlap: an id is another code in each."""
    shifted = replace(FORMAT, codes=CodeIds(sizes=(NUM_CODES - 2,), first=FORMAT.codes.start + 2))
    grammars = [
        TextGrammar(256),
        *(GridGrammar(form, size=size, vocab_size=VOCABULARY) for form, size in ((shifted, (1, 2)), (FORMAT, (2, 1)))),
    ]
    model = tiny_model().eval()
    batch = [[text("say")], *[[text("draw"), text([FORMAT.begin])]] * 2]
    found = [segment for row, segment in model.generate(batch, grammars, Generation(max_tokens=20), tokenizer=TOKENIZER) if row]
    drawn = [segment for segment in found if isinstance(segment, Codes)]
    assert {(segment.format.codes.start, tuple(segment.grid.shape)) for segment in drawn} == {
        (FORMAT.codes.start, (2, 1)),
        (shifted.codes.start, (1, 2)),
    }
    for segment in drawn:
        assert int(segment.grid.min()) >= 0 and int(segment.grid.max()) < segment.format.codes.num_ids


def test_a_grammar_that_writes_images_has_to_read_them() -> None:
    class Own(TextGrammar):
        def advance(self, state: State, next_id: int) -> State:
            return state._replace(num_images=1, mode="done")

    with pytest.raises(TypeError, match="Own wrote an image and has no method image; accepted: an ImageGrammar"):
        list(tiny_model().eval().generate([[text("draw")]], Own(256), Generation(max_tokens=2), tokenizer=TOKENIZER))


def scripted_head(model, script: list[int]) -> None:
    """Makes the head want one id after the other, whatever the trunk says."""
    remaining = iter(script)

    def logits(hidden, start=0, stop=None):
        values = torch.zeros(hidden.shape[0], VOCABULARY)
        values[:, upcoming.pop(0)] = 1
        return values[:, start:stop]

    upcoming = []
    grammar = GridGrammar(FORMAT, num_images=2, stop=(EOS,))
    state = grammar.start()
    for next_id in remaining:  # the head is not asked where the grammar leaves one id only
        ranges = grammar.allowed(state)
        if len(ranges) > 1 or ranges[0][1] - ranges[0][0] > 1:
            upcoming.append(next_id)
        state = grammar.advance(state, next_id)
    model.outputs["lm"].logits = logits


def test_the_table_of_generated_tokens_equals_that_of_the_same_tokens_read() -> None:
    model = tiny_model().eval()
    caches = []
    original = model.trunk.new_cache
    model.trunk.new_cache = lambda *sizes: caches.append(original(*sizes)) or caches[-1]
    start = [text("draw"), text([FORMAT.begin])]
    (found,) = model.generate([start], GridGrammar(FORMAT, size=(2, 2)), Generation(max_tokens=40), tokenizer=TOKENIZER)
    read = model.batch_builder(TOKENIZER)([[text("draw"), found.segment]]).table
    generated = caches[0].table
    length = generated.shape[1]  # the last token is written, but no longer read
    assert length == read.shape[1] - 1
    for name in ("modality", "document", "span", "grid", "order", "noisy"):
        assert torch.equal(getattr(generated, name), getattr(read, name)[:, :length]), name


def test_max_tokens_ends_rows_that_do_not_end_themselves() -> None:
    model = tiny_model().eval()
    (found,) = model.generate([[text([97])]], TextGrammar(256), Generation(max_tokens=3))
    assert len(found.segment.content) == 3


def test_a_generator_makes_sampling_repeatable() -> None:
    model = tiny_model().eval()

    def written(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return list(model.generate([[text([97])]], TextGrammar(256), Generation(max_tokens=8, generator=generator)))

    assert written(1) == written(1)
    assert written(1) != written(2)


def test_prompts_that_cannot_be_continued_are_refused() -> None:
    model = tiny_model().eval()
    grammar = TextGrammar(VOCABULARY)
    right = model.batch_builder(TOKENIZER)([[text("ab")], [text("c")]], padding="right")
    with pytest.raises(ValueError, match="padded on the right"):
        next(generate_ids(model, right, grammar, Generation(max_tokens=1, sampling=GREEDY)))
    with pytest.raises(ValueError, match="guidance and unconditional go together"):
        next(model.generate([[text([1])]], grammar, Generation(max_tokens=1, guidance=2.0)))
    with pytest.raises(ValueError, match="max_tokens is 0"):
        next(model.generate([[text([1])]], grammar, Generation(max_tokens=0)))
    with pytest.raises(ValueError, match="id 264 cannot stand in text"):
        next(model.generate([[text([264])]], GridGrammar(FORMAT), Generation(max_tokens=1)))


def test_sampling_an_image_size() -> None:
    """No size given: the model spells one, without leading zeros."""
    grammar = GridGrammar(FORMAT)
    state = grammar.advance(grammar.start(), FORMAT.begin)
    digits = set(b"0123456789")
    assert allowed_ids(grammar, state) == digits - {ord("0")}
    state = grammar.advance(state, ord("1"))
    assert allowed_ids(grammar, state) == digits | {ord("*")}
    for spelled in "05":
        state = grammar.advance(state, ord(spelled))
    assert allowed_ids(grammar, state) == {ord("*")}
    for spelled in "*2":
        state = grammar.advance(state, ord(spelled))
    assert allowed_ids(grammar, state) == digits | {FORMAT.image}
    state = grammar.advance(state, FORMAT.image)
    assert (state.mode, state.height, state.width) == ("grid", 105, 2)
    with pytest.raises(ValueError, match="cannot stand in the grid"):
        grammar.advance(state, ord("1"))


def allowed_ids(grammar: GridGrammar, state) -> set[int]:
    return {i for first, stop in grammar.allowed(state) for i in range(first, stop)}


def test_text_never_holds_the_ids_inside_an_image() -> None:
    grammar = GridGrammar(FORMAT, num_images=1, stop=(EOS,))
    structure = {FORMAT.image, FORMAT.row_end, *FORMAT.closing}
    everything = set(range(FORMAT.codes.start))
    assert allowed_ids(grammar, grammar.start()) == everything - structure
    assert allowed_ids(grammar, grammar.start()._replace(num_images=1)) == everything - structure - {FORMAT.begin}


@pytest.mark.parametrize("options", [{"size": (0, 3)}, {"num_images": -1}, {"num_images": 0}])
def test_grammars_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(ValueError, match="accepted"):
        GridGrammar(FORMAT, **options)


def test_row_states_are_independent_of_each_other() -> None:
    """Rows that end at different steps do not disturb each other."""
    model = tiny_model().eval()
    starts = [[text([FORMAT.begin, *FORMAT.size_ids(*size), FORMAT.image])] for size in ((1, 2), (3, 3))]
    found = dict(model.generate(starts, GridGrammar(FORMAT), Generation(max_tokens=40, sampling=Sampling(temperature=0))))
    assert {row: tuple(segment.grid.shape) for row, segment in found.items()} == {0: (1, 2), 1: (3, 3)}
    (alone,) = model.generate(starts[1:], GridGrammar(FORMAT), Generation(max_tokens=40, sampling=GREEDY))
    assert torch.equal(alone.segment.grid, found[1].grid)


def test_a_prompt_may_hold_earlier_turns() -> None:
    assert TextGrammar(50, stop=(EOS,)).start([3, EOS, 4]).mode == "text"
    earlier = FORMAT.write(torch.zeros(2, 5, dtype=torch.long)).ids.tolist()
    grammar = GridGrammar(FORMAT, size=(3, 3), stop=(EOS,))
    state = grammar.start([3, *earlier, EOS, 4])
    assert state.mode == "text" and FORMAT.begin in allowed_ids(grammar, state)
    assert grammar.start([*earlier, FORMAT.begin]).mode == "size"
    other_size = [FORMAT.begin, *FORMAT.size_ids(2, 5)]
    with pytest.raises(ValueError, match="prompt begins an image whose size starts with"):
        grammar.start(other_size)
    with pytest.raises(ValueError, match="cannot stand in text"):
        grammar.start(earlier[-2:])
