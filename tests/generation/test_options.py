"""What a generation is told, as one value; what the grammar knows by itself; and the keywords of before."""

import inspect
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch

import mmblocks.generation
from mmblocks import GREEDY, Generation, GridFormat, GridGrammar, LMHead, MultimodalModel, Sampling, TextGrammar, text
from mmblocks.generation import VectorBlock, VectorGrammar, beam_search
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.heads import RegressionHead
from mmblocks.models.emu3.published_rules import Emu3PrefixGrammar
from mmblocks.vocabulary import CodeIds
from mmblocks.vocabulary.grid_format import EMU3, raster_format
from tests.shared.tiny import FORMAT, TOKENIZER, VOCABULARY, WIDTH, tiny_model

PROMPT = [[text([97])]]
ANY_SIZE = GridGrammar(FORMAT)


def test_defaults_are_plain_sampling_without_a_limit() -> None:
    assert Generation() == Generation(
        max_tokens=None, sampling=Sampling(), guidance=None, hooks=(), generator=None, input="text", head=None
    )


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("max_tokens", 0, ValueError),
        ("max_tokens", 2.0, TypeError),
        ("max_tokens", True, TypeError),
        ("sampling", 0.7, TypeError),
        ("sampling", None, TypeError),
        ("guidance", "2", TypeError),
        ("generator", "0", TypeError),
    ],
)
def test_fields_of_other_types_are_refused_by_name(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{field} is .*; accepted: "):
        Generation(**{field: value})


def test_an_int_seeds_every_call_anew() -> None:
    model, options = tiny_model().eval(), Generation(max_tokens=8, generator=3)
    first, again = (list(model.generate(PROMPT, TextGrammar(256), options)) for _ in range(2))
    given = Generation(max_tokens=8, generator=torch.Generator().manual_seed(3))
    other = Generation(max_tokens=8, generator=4)
    assert first == again == list(model.generate(PROMPT, TextGrammar(256), given))
    assert first != list(model.generate(PROMPT, TextGrammar(256), other))


VECTORS = VectorBlock(begin=1, end=2, size=(2, 3), head="latents", input="latents")


@pytest.mark.parametrize(
    ("grammar", "prompt", "wanted"),
    [
        (GridGrammar(FORMAT, size=(2, 3)), [FORMAT.begin], len(FORMAT.head(2, 3)) - 1 + FORMAT.length(2, 3)),
        (GridGrammar(FORMAT, size=(2, 3)), FORMAT.head(2, 3), FORMAT.length(2, 3)),
        (GridGrammar(FORMAT, size=(2, 3)), [*FORMAT.head(2, 3), FORMAT.codes.start], FORMAT.length(2, 3) - 1),
        (GridGrammar(FORMAT, size=(2, 3)), [97], None),
        (GridGrammar(FORMAT, size=(2, 3), num_images=2), [FORMAT.begin], None),
        (GridGrammar(FORMAT, size=(2, 3), stop=(0,)), [FORMAT.begin], None),
        (ANY_SIZE, [FORMAT.begin], None),
        (ANY_SIZE, FORMAT.head(4, 2), FORMAT.length(4, 2)),
        (GridGrammar(raster_format(3, 2, 8)), [], 6),
        (GridGrammar(raster_format(3, 2, 8), num_images=4), [], 24),
        (Emu3PrefixGrammar((2, 3), eos=1, pad=2), EMU3.head(2, 3), None),
        (VectorGrammar(VECTORS, vocab_size=9), [1], 7),
        (VectorGrammar(VECTORS, vocab_size=9), [3], None),
        (VectorGrammar(VECTORS, vocab_size=9, num_images=2), [1], None),
        (VectorGrammar(VECTORS, vocab_size=9, stop=(4,)), [1], None),
    ],
)
def test_a_grammar_knows_how_much_it_writes(grammar, prompt: list[int], wanted: int | None) -> None:
    """Counted by writing the first id that is allowed until the row is done."""
    state = grammar.start(prompt)
    assert grammar.max_tokens(state) == wanted
    if wanted is not None:
        for left in range(wanted, 0, -1):
            assert state.mode != "done"
            assert grammar.max_tokens(state) == left
            state = grammar.advance(state, grammar.allowed(state)[0][0] if grammar.allowed(state) else -1)
        assert state.mode == "done"
        assert grammar.max_tokens(state) == 0


def test_without_a_number_the_longest_row_decides() -> None:
    model = tiny_model().eval()
    grammars = [GridGrammar(FORMAT, size=(1, 2)), GridGrammar(FORMAT, size=(3, 4))]
    found = dict(model.generate([[text([FORMAT.begin])]] * 2, grammars, tokenizer=TOKENIZER))
    assert [tuple(found[row].grid.shape) for row in range(2)] == [(1, 2), (3, 4)]
    with pytest.raises(ValueError, match=r"max_tokens is None, and the grammar sets rows \[1\] no limit; accepted: a number"):
        next(model.generate([[text([FORMAT.begin])]] * 2, [grammars[0], TextGrammar(256)]))


def test_the_keywords_of_before_mean_the_same() -> None:
    model = tiny_model().eval()
    batch = model.batch_builder()(PROMPT, padding="left")
    grammar, options = TextGrammar(VOCABULARY), Generation(max_tokens=3, sampling=GREEDY)
    with pytest.warns(FutureWarning, match=r"generate takes guidance, max_tokens as options=Gen.*; .* go with version 0.3"):
        found = model.generate(PROMPT, grammar, max_tokens=3, guidance=None, tokenizer=None)
    assert len(next(found).segment.content) == 3
    with pytest.warns(FutureWarning, match="generate_ids takes"):
        steps = list(generate_ids(model, batch, grammar, max_tokens=3, sampling=GREEDY))
    assert [step.ids.tolist() for step in steps] == [step.ids.tolist() for step in generate_ids(model, batch, grammar, options)]
    with pytest.warns(FutureWarning, match="beam_search takes"):
        beams = beam_search(model, batch, grammar, num_beams=2, max_tokens=3)
    assert beams == beam_search(model, batch, grammar, Generation(max_tokens=3), num_beams=2)


def test_options_and_keywords_do_not_mix() -> None:
    with pytest.raises(TypeError, match="generate was given options and guidance; accepted: all of it in options"):
        tiny_model().generate(PROMPT, TextGrammar(256), Generation(max_tokens=2), guidance=2.0)


def test_beam_search_refuses_what_it_does_not_use() -> None:
    model = tiny_model().eval()
    batch = model.batch_builder()(PROMPT, padding="left")
    options = Generation(max_tokens=2, sampling=GREEDY, guidance=2.0)
    with pytest.raises(ValueError, match="options set sampling, guidance, which beam_search does not use; accepted: max_tokens"):
        beam_search(model, batch, TextGrammar(VOCABULARY), options, num_beams=2)


def test_no_loop_takes_more_than_seven_arguments() -> None:
    functions = [partial(MultimodalModel.generate, None)]
    for path in Path(mmblocks.generation.__file__).parent.glob("[a-z]*.py"):
        name = f"mmblocks.generation.{path.stem}"
        members = vars(import_module(name)).items()
        functions += [one for key, one in members if inspect.isfunction(one) and one.__module__ == name and key[0] != "_"]
    counts = {str(one): len(inspect.signature(one).parameters) for one in functions}
    assert {name: count for name, count in counts.items() if count > 7} == {}


@pytest.mark.unchecked
def test_the_warning_names_the_callers_line() -> None:
    with pytest.warns(FutureWarning) as said:
        tiny_model().generate(PROMPT, TextGrammar(256), max_tokens=2)
    assert said[0].filename == __file__


def test_a_fixed_format_needs_no_numbers_at_all() -> None:
    form = GridFormat(begin=None, closing=(), codes=CodeIds(sizes=(VOCABULARY,), first=0), fixed_size=(2, 2))
    ((_, segment),) = tiny_model().eval().generate(PROMPT, GridGrammar(form))
    assert segment.grid.shape == (2, 2)


def test_the_head_over_ids_is_named_where_it_is_not_the_only_one() -> None:
    heads = {"one": LMHead(dim=WIDTH, vocab_size=VOCABULARY), "other": LMHead(dim=WIDTH, vocab_size=VOCABULARY)}
    vectors = {"vectors": RegressionHead(dim=WIDTH, target_dim=3)}
    grammar, two = TextGrammar(VOCABULARY), tiny_model(outputs=heads | vectors).eval()
    batch = two.batch_builder()(PROMPT, padding="left")
    with pytest.raises(ValueError, match="name the one that writes ids with head="):
        next(two.generate(PROMPT, grammar, Generation(max_tokens=1)))
    assert len(list(two.generate(PROMPT, grammar, Generation(max_tokens=1, head="other")))) == 1
    with pytest.raises(TypeError, match=r"head is 'vectors', a RegressionHead; accepted: one over ids, of \['one', 'other'\]"):
        next(two.generate(PROMPT, grammar, Generation(max_tokens=1, head="vectors")))
    with pytest.raises(ValueError, match=r"the model has heads \['vectors'\]; accepted: a model with a head over ids"):
        beam_search(tiny_model(outputs=vectors).eval(), batch, grammar, Generation(max_tokens=1), num_beams=1)
