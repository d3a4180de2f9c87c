"""Whole language models of transformers, as they write them: embedding, trunk and head are each read from one folder, and give their
logits, losses and gradients together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks import Block, Decoder, LMHead, TextEmbedding, TokenTable
from mmblocks.heads import TiedLMHead
from tests.trunks.test_decoder_families import FOLLOWED, LENGTH, SIZES

transformers = pytest.importorskip("transformers")

FACTORS: dict[str, list[dict[str, Any]]] = {
    "gemma2": [{"final_logit_softcapping": 0.5}, {"final_logit_softcapping": None}],
    "gemma3_text": [{"final_logit_softcapping": 0.5}],
    "granite": [{"logits_scaling": 0.25}],
    "cohere": [{"logit_scale": 1.5}],
    "cohere2": [{"logit_scale": 1.5}],
}
"""Of embeddings and heads, beside what stands in ``FOLLOWED``."""

TIED_EITHER_WAY = [
    pytest.param(kind, {**FOLLOWED[kind][0], **factors}, tied, id=f"{kind}-{number}-{'tied' if tied else 'untied'}")
    for kind in FOLLOWED
    for number, factors in enumerate([{}, *FACTORS.get(kind, [])])
    for tied in (False, True)
]


def model(kind: str, **options: Any) -> Any:
    """A small one whose logits are far from zero, where caps and factors count."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    known = transformers.CONFIG_MAPPING[kind]
    names = set(known().to_dict())
    config = known(**{name: value for name, value in SIZES.items() if name in names}, **options)
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = None
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return made.eval()


def parts(folder: Path, *, tied: bool, **options: Any) -> tuple[TextEmbedding, Decoder, LMHead]:
    embedding = TextEmbedding.from_pretrained(folder, **options)
    # Phi's head has a bias beside the embedding's tensor, and is read as a copy.
    biased = json.loads((folder / "config.json").read_text())["model_type"] == "phi"
    head = TiedLMHead.from_pretrained(folder, table=embedding) if tied and not biased else LMHead.from_pretrained(folder, **options)
    return embedding, Decoder.from_pretrained(folder, **options), head


def states(embedding: TextEmbedding, trunk: Decoder, ids: Tensor) -> Tensor:
    return trunk(embedding(ids), TokenTable.text(*ids.shape))


def some_ids() -> Tensor:
    return torch.randint(3, 50, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "options", "tied"), TIED_EITHER_WAY)
def test_the_same_logits_losses_and_gradients(tmp_path: Path, kind: str, options: dict[str, Any], tied: bool) -> None:
    theirs = model(kind, **options, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    embedding, trunk, head = parts(tmp_path, tied=tied)
    ids = some_ids()
    hidden = states(embedding, trunk, ids)
    output = theirs(input_ids=ids, labels=ids, use_cache=False)
    logits = head.logits(hidden)
    assert logits.abs().max() > 0.3
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.logits(hidden, 7, 19), output.logits[..., 7:19], atol=1e-5, rtol=1e-5)

    loss = head.loss(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).mean()
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    output.loss.backward()
    pairs = [(embedding.weight, theirs.get_input_embeddings().weight)]
    if not tied:
        pairs.append((head.weight, theirs.get_output_embeddings().weight))
    if head.bias is not None:
        pairs.append((head.bias, theirs.get_output_embeddings().bias))
    if tied and isinstance(head, LMHead) and not isinstance(head, TiedLMHead):
        embedding.weight.grad += head.weight.grad
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "phi"])
def test_in_half_precision(tmp_path: Path, kind: str) -> None:
    theirs = model(kind, **FOLLOWED[kind][0], **FACTORS.get(kind, [{}])[0]).bfloat16()
    theirs.save_pretrained(tmp_path)
    embedding, trunk, head = parts(tmp_path, tied=theirs.config.tie_word_embeddings, dtype=torch.bfloat16)
    ids = some_ids()
    embeds = embedding(ids)
    wanted = theirs(input_ids=ids, output_hidden_states=True)
    if kind != "granite":  # whose trunk multiplies
        assert embeds.dtype == torch.bfloat16 and torch.equal(embeds, wanted.hidden_states[0])
    logits = head.logits(trunk(embeds, TokenTable.text(*ids.shape)))
    exact = theirs.float()(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted.logits.float(), atol=2e-2, rtol=2e-2)
    assert (logits - exact).abs().mean() < 1.2 * (wanted.logits - exact).abs().mean()
