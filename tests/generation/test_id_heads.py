"""Several heads over ids in one reply, each with a range of the vocabulary of its own."""

from functools import partial

import pytest
import torch

from mmblocks import GREEDY, Generation, GridGrammar, LMHead, MultimodalModel, TextEmbedding, TextGrammar, text
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.beam import beam_search
from mmblocks.generation.choosing import Chooser
from mmblocks.generation.grammar import Described, State
from mmblocks.generation.guidance import Unguided, as_guidance
from mmblocks.generation.id_heads import ids_of, vocabulary_logits
from mmblocks.heads import ModalityLMHead, RegressionHead
from mmblocks.sequence.tokens import Modality, TokenTable
from tests.shared.tiny import EOS, FORMAT, NUM_CODES, TOKENIZER, VOCABULARY, WIDTH, tiny_model

FIRST = FORMAT.codes.start
TEXT = State()
PROMPTS = [[text("what is it? ")], [text("a")]]


def two_heads(**more):
    heads = {
        "words": LMHead(dim=WIDTH, vocab_size=TOKENIZER.vocab_size, init_std=0.5),
        "codes": ModalityLMHead(dim=WIDTH, vocab_size=NUM_CODES, first=FIRST, init_std=0.5),
    }
    return tiny_model(outputs={**heads, **more}).eval()


def grammar_of(**options) -> GridGrammar:
    return GridGrammar(FORMAT, **{"size": (2, 3), "stop": (EOS,), "head": "codes", **options})


def opening(scores):
    """Text, then an image from step 2 on, then text."""
    if scores.step == 2:
        scores.logits[:] = float("-inf")
        scores.logits[:, FORMAT.begin - scores.first] = 0
    elif scores.first <= EOS < scores.first + scores.logits.shape[1]:
        scores.logits[:, EOS - scores.first] = float("-inf")
    return scores.logits


@pytest.mark.parametrize("guidance", [None, 2.0])
@torch.no_grad()
def test_text_codes_and_text_are_those_of_a_whole_pass(guidance) -> None:
    model, grammar = two_heads(), grammar_of()
    prompts = PROMPTS if guidance is None else [*PROMPTS, [text("x")], [text("yz")]]
    batch = model.batch_builder(TOKENIZER)(prompts, padding="left")
    options = Generation(max_tokens=30, sampling=GREEDY, head="words", hooks=[opening], guidance=guidance)
    steps = list(generate_ids(model, batch, grammar, options))
    modes = [step.before[0].mode for step in steps]
    assert modes[0] == modes[-1] == "text" and "grid" in modes
    ids = torch.stack([step.ids for step in steps], dim=1)

    streams = 1 if guidance is None else 2
    length = batch.ids.shape[1]
    whole = torch.cat([batch.ids, ids.repeat(streams, 1)], dim=1)
    table = TokenTable.text(len(prompts), whole.shape[1])
    table.document[:, :length] = batch.table.document
    table.order[:] = torch.cat([batch.table.order, batch.table.order[:, -1:] + torch.arange(1, len(steps) + 1)], dim=1)
    states = model.trunk(model.inputs["text"](whole.clamp(min=0)), table)[:, length - 1 : -1]
    states = states.unflatten(0, (streams, -1))
    for number, step in enumerate(steps):
        for row, state in enumerate(step.before):
            allowed = [i for first, stop in grammar.allowed(state) for i in range(first, stop) if i != EOS]
            if len(allowed) == 1 or number == 2:
                continue
            head = model.outputs["codes" if state.mode == "grid" else "words"]
            logits = vocabulary_logits(head, states[:, row, number], *ids_of(head))
            combined = as_guidance(guidance).combine(logits[:, None], number)[0]
            best = max(allowed, key=lambda i: float(combined[i - ids_of(head)[0]]))
            assert best == int(step.ids[row]), (number, row, state)


def test_an_id_is_written_by_the_head_that_the_grammar_names() -> None:
    model = two_heads()
    found = list(model.generate([[text([FORMAT.begin])]], grammar_of(stop=()), Generation(sampling=GREEDY, head="words")))
    assert found[0].segment.grid.shape == (2, 3)
    assert grammar_of(input="pictures").describe(State("grid", 2, 3)) == Described(
        int(Modality.VISION), True, (0, 0, 0), "codes", "pictures"
    )


def test_rows_of_different_heads_are_served_apart() -> None:
    """In one step one row writes text, another a code."""
    model, grammar = two_heads(), grammar_of()
    hidden, states = torch.randn(3, WIDTH), [State(), State("grid", 2, 3), State()]
    choose = Chooser(model.outputs, model.outputs["words"], guidance=Unguided(), sampling=GREEDY)
    ids = choose(hidden, [grammar] * 3, states, 0).ids.tolist()
    assert ids[1] == int(model.outputs["codes"].sample(hidden[1:2]))
    allowed = [i for first, stop in grammar.allowed(State()) for i in range(first, stop)]
    logits = model.outputs["words"].logits(hidden)
    assert [ids[0], ids[2]] == [allowed[int(logits[row, allowed].argmax())] for row in (0, 2)]


def test_heads_that_cannot_write_the_ids_are_refused() -> None:
    model = two_heads(latents=RegressionHead(dim=WIDTH, target_dim=4))

    def check(grammar, state=TEXT) -> None:
        chooser = Chooser(model.outputs, model.outputs["words"], guidance=Unguided(), sampling=GREEDY)
        chooser.check([grammar], [state])
        if grammar.allowed(state)[0][1] - grammar.allowed(state)[0][0] > 1:
            chooser(torch.randn(1, WIDTH), [grammar], [state], 0)

    check(grammar_of())
    with pytest.raises(TypeError, match=r"head 'latents', a RegressionHead; accepted: of \['words', 'codes'\]"):
        check(grammar_of(head="latents"))
    with pytest.raises(ValueError, match=r"head 'images'; the model's heads: \['words', 'codes', 'latents'\]"):
        check(grammar_of(head="images"))
    with pytest.raises(ValueError, match=rf"ids {FIRST} to {VOCABULARY - 1}; the head LMHead writes ids 0 to {FIRST - 1}"):
        check(grammar_of(head=None))
    with pytest.raises(ValueError, match=rf"ids 0 to {FIRST}; the head LMHead"):
        check(TextGrammar(FIRST + 1))
    small = model.outputs["codes"]
    small.first += 1
    with pytest.raises(ValueError, match=rf"ids {FIRST} to {VOCABULARY - 1}; the head 'codes' writes ids {FIRST + 1} to"):
        check(grammar_of())


def test_only_what_may_still_be_chosen_is_checked() -> None:
    opened, between = State("grid", 2, 3), State("text", num_images=1)
    one, more = grammar_of(stop=()), grammar_of(stop=(), num_images=2)
    assert [head for head, _ in one.choices(opened)] == ["codes"]
    assert one.choices(State("done")) == []
    assert [head for head, _ in one.choices(State())] == ["codes", None]
    assert [head for head, _ in more.choices(opened)] == ["codes", None]
    assert [head for head, _ in grammar_of(num_images=1).choices(between)] == [None]
    free = grammar_of(size=None, stop=())
    assert [head for head, _ in free.choices(State("size"))] == ["codes", None]
    digits = dict(free.choices(State("size")))[None]
    assert sorted(first for first, _ in digits) == sorted(FORMAT.digits)


def test_a_model_of_later_ids_alone_writes_them() -> None:
    model = tiny_model(outputs={"codes": ModalityLMHead(dim=WIDTH, vocab_size=NUM_CODES, first=FIRST)}).eval()
    found = list(model.generate([[text([FORMAT.begin])]], GridGrammar(FORMAT, size=(2, 3))))
    assert found[0].segment.grid.shape == (2, 3)


def test_beams_of_later_ids() -> None:
    """A head of the ids from 3 on finds what a head of all ids finds, whose first ids cannot come."""
    weight = torch.randn(VOCABULARY - 3, WIDTH)
    late = tiny_model(outputs={"lm": ModalityLMHead(dim=WIDTH, vocab_size=VOCABULARY - 3, first=3)}).eval()
    whole = tiny_model().eval()
    late.outputs["lm"].weight.data, whole.outputs["lm"].weight.data[3:] = weight, weight

    class Late(TextGrammar):
        def allowed(self, state):
            return ((3, self.vocab_size),)

    options = Generation(max_tokens=3)
    batch = whole.batch_builder(TOKENIZER)(PROMPTS, padding="left")
    first, second = (beam_search(model, batch, Late(VOCABULARY), num_beams=2, options=options) for model in (late, whole))
    assert [[beam.ids for beam in beams] for beams in first] == [[beam.ids for beam in beams] for beams in second]
    with pytest.raises(ValueError, match="allows ids 0 to"):
        beam_search(late, batch, TextGrammar(VOCABULARY), num_beams=2, options=options)


def test_a_hook_allows_nothing_that_the_grammar_forbids() -> None:
    model, grammar, state = two_heads(), grammar_of(size=None), State("size", size=(ord("2"),))
    forbidden = ord("-")  # between "*" and the digits
    assert grammar.allowed(state)[0] == (ord("*"), ord("*") + 1)

    def prefer(scores):
        changed = scores.logits.clone()
        changed[:, forbidden - scores.first] = 100
        return changed

    choose = Chooser(model.outputs, model.outputs["words"], guidance=Unguided(), sampling=GREEDY, hooks=[prefer])
    assert int(choose(torch.randn(1, WIDTH), [grammar], [state], 0).ids) != forbidden


@torch.no_grad()
def test_beams_are_written_and_read_by_what_the_grammar_names() -> None:
    """One beam is greedy text and codes of another head, embedded by another input; more are scored as in a whole pass."""
    model = two_heads()
    pictures = TextEmbedding(vocab_size=VOCABULARY, dim=WIDTH)
    model = MultimodalModel(
        inputs={**dict(model.inputs.items()), "pictures": pictures}, trunk=model.trunk, outputs=dict(model.outputs.items())
    )
    model.eval()
    grammar, prompt = grammar_of(stop=(), input="pictures"), [[text([FORMAT.begin])]]
    batch = model.batch_builder(TOKENIZER)(prompt, padding="left")
    options = Generation(head="words")
    (beams,) = beam_search(model, batch, grammar, options, num_beams=3, length_penalty=0.0)
    greedy = [int(step.ids) for step in generate_ids(model, batch, grammar, Generation(head="words", sampling=GREEDY))]
    (alone,) = beam_search(model, batch, grammar, options, num_beams=1)
    assert list(alone[0].ids) == greedy

    length = len(beams[0].ids)
    for beam in beams:
        state, embeds, score = grammar.start([FORMAT.begin]), [model.embed(batch)[0]], 0.0
        for next_id in beam.ids:
            written = sum(len(one) for one in embeds)
            hidden = model.trunk(torch.cat(embeds)[None], TokenTable.text(1, written))[0, -1:]
            allowed = [i for first, stop in grammar.allowed(state) for i in range(first, stop)]
            described = grammar.describe(state)
            if len(allowed) > 1:
                head = model.outputs[described.head or "words"]
                chances = vocabulary_logits(head, hidden, allowed[0], allowed[-1] + 1)[0]
                score += float(chances[[i - allowed[0] for i in allowed]].log_softmax(0)[allowed.index(next_id)])
            embeds.append(model.inputs[described.input or "text"](torch.tensor([next_id])))
            state = grammar.advance(state, next_id)
        assert state.mode == "done" and len(beam.ids) == length
        assert beam.score == pytest.approx(score, abs=1e-4)


def test_beams_of_what_heads_cannot_write_are_refused(monkeypatch) -> None:
    model = two_heads(latents=RegressionHead(dim=WIDTH, target_dim=4))
    batch = model.batch_builder(TOKENIZER)([[text([FORMAT.begin])]], padding="left")
    search = partial(beam_search, model, batch, num_beams=2, options=Generation(head="words"))
    with pytest.raises(ValueError, match="lets head 'latents' write a vector; accepted for beams: ids alone"):
        search(VectorGrammar(VectorBlock(begin=FORMAT.begin, end=None, size=(1, 2), head="latents", input="latents"), vocab_size=9))
    monkeypatch.setattr(type(model.trunk), "forward", lambda *_, **__: pytest.fail("the prompt was read"))
    with pytest.raises(TypeError, match="head 'latents', a RegressionHead"):
        search(grammar_of(stop=(), head="latents"))
    with pytest.raises(ValueError, match="head 'images'; the model's heads"):
        search(grammar_of(stop=(), head="images"))
    with pytest.raises(ValueError, match="the head LMHead writes ids 0 to"):
        search(grammar_of(stop=(), head=None))
