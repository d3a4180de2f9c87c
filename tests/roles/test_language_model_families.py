"""Whole language models of transformers: embedding, trunk and head, each read from one folder, give their logits and losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmblocks import Decoder, LMHead, TextEmbedding, TokenTable
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
def test_minicpm_is_granite_with_factors_of_other_names(tmp_path: Path) -> None:
    """transformers has no MiniCPM: the oracle is Granite with the factors that MiniCPM's code computes."""
    theirs = model(
        "granite",
        embedding_multiplier=12.0,
        residual_multiplier=1.4 / 2**0.5,
        attention_multiplier=8**-0.5,
        logits_scaling=32 / 16,
        tie_word_embeddings=True,
    )
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "tie_word_embeddings")
    config = {name: value for name, value in config.items() if name not in names}
    config |= {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
    config |= {"scale_depth": 1.4, "scale_emb": 12, "dim_model_base": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    embedding, trunk, head = parts(tmp_path, tied=True)
    ids = some_ids()
    logits = head.logits(states(embedding, trunk, ids))
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "tied"), [("gemma2", True), ("cohere", False), ("phi", False), ("phi", True)])
def test_what_is_written_for_the_authors_is_read_again(tmp_path: Path, kind: str, tied: bool) -> None:
    model(kind, **FOLLOWED[kind][0], tie_word_embeddings=tied).save_pretrained(tmp_path / "theirs")
    published = load_file(tmp_path / "theirs" / "model.safetensors")
    for cls in (TextEmbedding, LMHead):
        part, folder = cls.from_pretrained(tmp_path / "theirs"), tmp_path / cls.__name__
        part.to_upstream(folder)
        written = load_file(folder / "model.safetensors")
        assert written and all(torch.equal(value, published[name]) for name, value in written.items())
        (folder / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
        again = cls.from_pretrained(folder)
        assert again.config == part.config
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in part.state_dict().items())


def test_a_tied_head_is_written_and_read_with_its_embedding(tmp_path: Path) -> None:
    model("gemma2", **FOLLOWED["gemma2"][0], **FACTORS["gemma2"][0]).save_pretrained(tmp_path / "theirs")
    embedding = TextEmbedding.from_pretrained(tmp_path / "theirs")
    head = TiedLMHead.from_pretrained(tmp_path / "theirs", table=embedding)
    assert head.rows is embedding.weight and head.softcap == 0.5
    head.to_upstream(tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert list(written) == ["model.embed_tokens.weight"] and torch.equal(written["model.embed_tokens.weight"], embedding.weight)


def test_a_tied_head_has_no_place_for_a_bias(tmp_path: Path) -> None:
    model("phi", tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lm_head\.bias"):
        TiedLMHead.from_pretrained(tmp_path, table=TextEmbedding.from_pretrained(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "phi"])
def test_in_half_precision(tmp_path: Path, kind: str) -> None:
    theirs = model(kind, **{**FOLLOWED[kind][0], **FACTORS.get(kind, [{}])[0]}).bfloat16()
    theirs.save_pretrained(tmp_path)
    embedding, trunk, head = parts(tmp_path, tied=theirs.config.tie_word_embeddings, dtype=torch.bfloat16)
    ids = some_ids()
    embeds = embedding(ids)
    wanted = theirs(input_ids=ids, output_hidden_states=True)
    if kind != "granite":  # whose trunk multiplies
        assert embeds.dtype == torch.bfloat16 and torch.equal(embeds, wanted.hidden_states[0])
    logits = head.logits(trunk(embeds, TokenTable.text(*ids.shape)))
    exact = theirs.float()(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted.logits.float(), atol=5e-2, rtol=2e-2)
    assert (logits - exact).abs().mean() < 1.2 * (wanted.logits - exact).abs().mean()
