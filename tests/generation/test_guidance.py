"""Guidance by formula, and streams that read what they should."""

import math

import pytest
import torch

from mmblocks import GREEDY, Generation, GridGrammar, Sampling, TextGrammar, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.choosing import ModalSampling
from mmblocks.generation.guidance import ClassifierFree, MutualInformation, ThreeWay, VisualContrastive
from tests.shared.tiny import EOS, FORMAT, TOKENIZER, VOCABULARY, tiny_model


def test_three_way_guidance_has_the_two_way_one_in_it() -> None:
    logits = torch.randn(3, 4, 9)
    equal = ThreeWay(scale=2.0, image_scale=2.0).combine(logits, 0)
    torch.testing.assert_close(equal, ClassifierFree(scale=2.0).combine(logits[[0, 2]], 0))
    text_only = ThreeWay(scale=2.0, image_scale=1.0).combine(logits, 0)
    torch.testing.assert_close(text_only, ClassifierFree(scale=2.0).combine(logits[:2], 0))


@torch.no_grad()
def test_three_streams_are_cached_each_by_itself() -> None:
    """Every step equals reading the three prompts anew, with all that was written after each."""
    model = tiny_model().eval()
    builder = model.batch_builder(TOKENIZER)
    prompts = [[text("a seven, in red: ")], [text("in red: ")], [text("?")]]
    guidance = ThreeWay(scale=2.0, image_scale=1.5, images_only=False)
    seen, hooks = [], [lambda scores: seen.append(scores.logits) or scores.logits]
    batch = builder(prompts, padding="left")
    steps = list(
        generate_ids(
            model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=4, sampling=GREEDY, guidance=guidance, hooks=hooks)
        )
    )
    for number, logits in enumerate(seen):
        written = [int(step.ids) for step in steps[:number]]
        anew = [model.outputs["lm"].logits(model.hidden(builder([[*prompt, text(written)]]))[:, -1]) for prompt in prompts]
        torch.testing.assert_close(logits, guidance.combine(torch.stack(anew), number), atol=1e-5, rtol=1e-4)


def test_plain_logits_give_the_same_distribution() -> None:
    logits = torch.randn(2, 4, 9)
    normalised, plain = (ClassifierFree(scale=3.0, normalise=n).combine(logits, 0) for n in (True, False))
    torch.testing.assert_close(normalised.softmax(-1), plain.softmax(-1))
    assert torch.equal(ClassifierFree(scale=3.0, last_step=4).combine(logits, 5), logits[0])


def test_contrastive_decoding_keeps_plausible_ids_alone() -> None:
    clear, distorted = torch.tensor([[3.0, 2.0, -9.0]]), torch.tensor([[3.0, 0.0, -50.0]])
    got = VisualContrastive(alpha=1.0, beta=0.1).combine(torch.stack([clear, distorted]), 0)
    assert got[0].tolist() == [3.0, 4.0, -math.inf]
    with pytest.raises(ValueError, match="beta is 2"):
        VisualContrastive(beta=2)


def test_mutual_information_grows_with_the_text_unless_the_model_is_sure() -> None:
    seen, unseen = torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    rule = MutualInformation(forgetting=0.1)
    early, late = (rule.combine(torch.stack([seen, unseen]), step) for step in (0, 60))
    assert int(early.argmax()) == 0
    assert int(late.argmax()) == 1
    sure = torch.tensor([[9.0, 0.0, 0.0]])
    torch.testing.assert_close(rule.combine(torch.stack([sure, unseen]), 60), sure.log_softmax(-1))


@torch.no_grad()
def test_streams_of_images_alone_skip_text() -> None:
    """After text, an image is guided as if the other stream had read the image's ids alone, at its own positions."""
    model = tiny_model().eval()
    builder = model.batch_builder(TOKENIZER)
    script = [*b"hello", FORMAT.begin, *b"1*2", FORMAT.image]
    seen = []

    def follow(scores):
        if scores.states[0].mode == "grid":
            seen.append(scores.logits)
            return scores.logits
        forced = torch.full_like(scores.logits, -math.inf)
        forced[:, script[scores.step] - scores.first] = 0
        return forced

    batch = builder([[text("draw: ")], [text("?")]], padding="left")
    guidance = ClassifierFree(scale=3.0, images_only=True)
    grammar = GridGrammar(FORMAT, stop=(EOS,))
    list(generate_ids(model, batch, grammar, Generation(max_tokens=11, sampling=GREEDY, guidance=guidance, hooks=[follow])))

    image = script[script.index(FORMAT.begin) :]
    rows = [[text("draw: "), text(script)], [text("?"), text(image)]]
    streams = [model.outputs["lm"].logits(model.hidden(builder([row]))[:, -1], FORMAT.codes.start) for row in rows]
    torch.testing.assert_close(seen[0], guidance.combine(torch.stack(streams), 0))


def test_text_and_images_are_sampled_each_in_its_own_way() -> None:
    """Greedy text and free images: only the images of two runs differ."""
    model = tiny_model().eval()
    sampling = ModalSampling(text=GREEDY, image=Sampling(temperature=50.0))

    def run(grammar, prompt, seed):
        generator = torch.Generator().manual_seed(seed)
        return list(model.generate([prompt], grammar, Generation(max_tokens=20, sampling=sampling, generator=generator)))

    prose = [run(TextGrammar(VOCABULARY), [text([97])], seed)[0].segment.content for seed in (1, 2)]
    drawn = [run(GridGrammar(FORMAT, size=(2, 3)), [text([FORMAT.begin])], seed)[0].segment.grid for seed in (1, 2)]
    assert prose[0] == prose[1]
    assert not torch.equal(*drawn)


def test_hooks_see_what_the_grammar_allows_and_may_change_it() -> None:
    model = tiny_model().eval()
    wanted = FORMAT.codes.start + 5
    allowed = []

    def only_five(scores):
        allowed.append(scores.logits.shape[-1])
        changed = torch.full_like(scores.logits, -math.inf)
        changed[:, wanted - scores.first] = 0
        return changed

    grammar = GridGrammar(FORMAT, size=(2, 2))
    (found,) = model.generate([[text([FORMAT.begin])]], grammar, Generation(max_tokens=20, hooks=[only_five]))
    assert found.segment.grid.tolist() == [[5, 5], [5, 5]]
    assert allowed == [FORMAT.codes.num_ids] * 4  # the visual rows of the head alone
