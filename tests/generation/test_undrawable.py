"""Logits from which nothing can be sampled are a named error in every sampler, never id 0 or the id of a NaN."""

import math

import pytest
import torch

from mmblocks import GREEDY, Generation, Sampling, TextGrammar, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.beam import beam_search
from mmblocks.generation.guidance import ClassifierFree, MutualInformation, ThreeWay, VisualContrastive
from mmblocks.heads.embedding import MatchingHead
from mmblocks.heads.vocabularies import MultiTokenHead
from mmblocks.layers import categorical
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath
from mmblocks.models.var.transformer import VAR
from mmblocks.support import checks
from tests.shared.tiny import EOS, TOKENIZER, VOCABULARY, tiny_model

MESSAGE = "the logits of .* hold NaN or|the logits of .* are all minus infinity"
BAD = pytest.mark.parametrize("fill", [-math.inf, math.nan, math.inf])


def filled(logits: torch.Tensor, fill: float) -> torch.Tensor:
    """One id for NaN or infinity, every id for minus infinity."""
    logits = logits.clone()
    logits[..., slice(None) if fill == -math.inf else 3] = fill
    return logits


@BAD
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_p=0.9)])
@pytest.mark.parametrize("looks", [True, False])
def test_the_loop(fill, sampling, looks, monkeypatch) -> None:
    """Where a look would wait for the device, the host learns of it with the ids."""
    if not looks:
        monkeypatch.setattr(categorical, "is_readable", lambda values: False)
        monkeypatch.setattr(checks, "is_readable", lambda values: False)
    model = tiny_model().eval()
    batch = model.batch_builder(TOKENIZER)([[text("a")], [text("bc")]], padding="left")
    hooks = [lambda scores: filled(scores.logits, fill) if scores.step == 2 else scores.logits]
    steps = generate_ids(model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=4, sampling=sampling, hooks=hooks))
    assert len([next(steps), next(steps)]) == 2
    with pytest.raises(ValueError, match=MESSAGE):
        next(steps)


@BAD
def test_beams(fill, monkeypatch) -> None:
    model = tiny_model().eval()
    logits = model.outputs["lm"].logits
    monkeypatch.setattr(model.outputs["lm"], "logits", lambda *given: filled(logits(*given), fill))
    batch = model.batch_builder(TOKENIZER)([[text("a")]], padding="left")
    with pytest.raises(ValueError, match="the logits of prompt 0 hold NaN or infinity"):
        beam_search(model, batch, TextGrammar(VOCABULARY, (EOS,)), Generation(max_tokens=3), num_beams=2)


@pytest.mark.parametrize("penalty", [math.nan, math.inf])
def test_a_length_penalty_that_is_not_finite(penalty) -> None:
    model = tiny_model().eval()
    batch = model.batch_builder(TOKENIZER)([[text("a")]], padding="left")
    with pytest.raises(ValueError, match=r"length_penalty is .*; accepted: a finite number"):
        beam_search(model, batch, TextGrammar(VOCABULARY, (EOS,)), Generation(max_tokens=3), num_beams=2, length_penalty=penalty)


@BAD
@pytest.mark.parametrize("sampled", [None, torch.zeros(2, 1, 5, dtype=torch.long)])
def test_the_surest_of_a_grid(fill, sampled) -> None:
    sampler = ConfidenceSampler(num_steps=2)
    with pytest.raises(ValueError, match=MESSAGE):
        sampler.sample(lambda ids, step: filled(torch.zeros(1, 5, 7), fill), torch.full((1, 5), 7), 7, sampled=sampled)


@BAD
def test_codes_along_a_metric(fill) -> None:
    path = MetricPath(num_codes=7, code_dim=3)
    with pytest.raises(ValueError, match=MESSAGE):
        KineticSampler(num_steps=2).sample(lambda ids, step: filled(torch.zeros(1, 5, 7), fill), torch.zeros(1, 5).long(), path)


class _Codes:
    """As much of a quantizer as sampling asks for, and no more."""

    def vectors(self, ids):
        return torch.zeros(*ids.shape, 4)

    def mix(self, weights):
        assert weights.isfinite().all()
        return torch.zeros(*weights.shape[:-1], 4)

    def add_scale(self, total, vectors, number, *, scales):
        following = torch.zeros(len(vectors), *scales[min(number + 1, len(scales) - 1)], 4)
        return torch.zeros(len(vectors), 2, 2, 4), following


@BAD
@pytest.mark.parametrize("given", [False, True])
def test_scales(fill, given) -> None:
    sizes = {"num_codes": 10, "code_dim": 4, "num_classes": 5, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2.0}
    trunk = VAR(**sizes, scales=((1, 1), (2, 2))).eval()
    trunk.tokens.output.linear.register_forward_hook(lambda module, states, logits: filled(logits, fill))
    ids = torch.zeros(1, 5).long() if given else None
    with torch.no_grad(), pytest.raises(ValueError, match=MESSAGE):
        trunk.sample(torch.tensor([1]), _Codes(), smooth=given, ids=ids)


@pytest.mark.parametrize("guidance", [math.inf, math.nan])
def test_guidance_of_scales_that_is_not_finite(guidance) -> None:
    sizes = {"num_codes": 10, "code_dim": 4, "num_classes": 5, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2.0}
    with pytest.raises(ValueError, match=r"guidance is .*; accepted: 0 or more, and finite"):
        VAR(**sizes, scales=((1, 1),)).sample(torch.tensor([1]), _Codes(), guidance=guidance)


@BAD
def test_several_ids_of_a_row(fill, monkeypatch) -> None:
    head = MultiTokenHead(dim=8, vocab_size=6, num_tokens=2)
    monkeypatch.setattr(head.head, "logits", lambda hidden: filled(torch.zeros(len(hidden), 6), fill))
    with pytest.raises(ValueError, match=MESSAGE):
        head.sample(torch.zeros(2, 8))


@pytest.mark.parametrize("similarity", [torch.zeros(1, 1), torch.full((3, 3), math.nan), torch.full((3, 3), -math.inf)])
def test_wrong_partners(similarity) -> None:
    with pytest.raises(ValueError, match=r"similarity ha|similarity ho"):
        MatchingHead(dim=4).hard_negatives(similarity)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (lambda x: ClassifierFree(scale=x), "scale"),
        (lambda x: ThreeWay(scale=x, image_scale=1.0), "scale"),
        (lambda x: ThreeWay(scale=1.0, image_scale=x), "image_scale"),
        (lambda x: VisualContrastive(alpha=x), "alpha"),
        (lambda x: MutualInformation(forgetting=x), "forgetting"),
        (lambda x: ConfidenceSampler(temperature=x), "num_steps is 18, temperature inf|num_steps is 18, temperature nan"),
        (lambda x: ConfidenceSampler(sampling={"temperature": x}), "temperature"),
        (lambda x: MetricPath(num_codes=3, code_dim=2, alpha=x), "alpha"),
    ],
)
def test_settings_that_are_not_finite(rule, name, number) -> None:
    with pytest.raises(ValueError, match=name):
        rule(number)
