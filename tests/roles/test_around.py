"""Language models of transformers as composed models: their logits, losses and ids, with the very weights they have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmblocks import GREEDY, Decoder, Generation, MultimodalModel, TextGrammar, TokenizerFile, image, text
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.trunks.transformers.trunk import TransformersTrunk
from tests.roles.test_language_model_families import FACTORS, model
from tests.shared.tiny_tokenizers import byte_level
from tests.trunks.test_decoder_families import FOLLOWED

transformers = pytest.importorskip("transformers")

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}

DECODERS = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "phi", "cohere", "granite")
OTHERS = ("nemotron", "mixtral", "gpt2")


def language_model(kind: str, *, tied: bool = False, **options: Any) -> Any:
    if kind == "gpt2":
        options = {**GPT2, **options}
    return model(kind, **{**FOLLOWED.get(kind, [{}])[0], **FACTORS.get(kind, [{}])[0], **options}, tie_word_embeddings=tied)


def some_ids(rows: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def check_same(composed: MultimodalModel, theirs: Any, **tolerance: float) -> None:
    ids = some_ids()
    found = composed(composed.batch_builder()([[text(row.tolist(), target="text")] for row in ids]))
    wanted = theirs(input_ids=ids, labels=ids, use_cache=False)
    tolerance = tolerance or {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(composed.outputs["text"].logits(found.hidden), wanted.logits.float(), **tolerance)
    torch.testing.assert_close(found.losses["text"], wanted.loss.float(), **tolerance)


def written(composed: MultimodalModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    grammar = TextGrammar(composed.inputs["text"].vocab_size, stop=())
    options = Generation(max_tokens=count, sampling=GREEDY)
    for row, segment in composed.generate([[text(prompt)] for prompt in prompts], grammar, options):
        rows[row] += segment.content
    return rows


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_logits_losses_and_greedy_ids_are_the_models_own(kind: str, tied: bool) -> None:
    theirs = language_model(kind, tied=tied)
    composed = MultimodalModel.around(theirs)
    assert isinstance(composed.trunk, Decoder if kind in DECODERS else TransformersTrunk)
    check_same(composed, theirs)
    prompts = [row.tolist() for row in some_ids()]
    prompts[1] = prompts[1][:4]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        wanted.append(made[0, len(prompt) :].tolist())
    assert written(composed, prompts, 9) == wanted
    assert tied or any(len(set(row)) > 1 for row in wanted)


@pytest.mark.parametrize("trunk", ["decoder", "transformers"])
@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3_text"])
def test_either_trunk(kind: str, trunk: Any) -> None:
    theirs = language_model(kind, **({"layer_types": ["full_attention"] * 2} if kind == "gemma3_text" else {}))
    composed = MultimodalModel.around(theirs, trunk=trunk)
    assert isinstance(composed.trunk, Decoder if trunk == "decoder" else TransformersTrunk)
    check_same(composed, theirs)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3_text", "phi", "gpt2"])
def test_a_tie_is_one_parameter_and_stays_one_when_saved(kind: str, tmp_path: Path) -> None:
    theirs = language_model(kind, tied=True)
    composed = MultimodalModel.around(theirs)
    embedding = theirs.get_input_embeddings().weight
    assert composed.inputs["text"].weight is embedding and composed.outputs["text"].weight is embedding
    composed.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert again.inputs["text"].weight is again.outputs["text"].weight
    assert len(list(again.parameters())) == len(list(composed.parameters()))
    check_same(again, theirs)
    with torch.no_grad():
        again.inputs["text"].weight.mul_(2)
    assert torch.equal(again.outputs["text"].weight, again.inputs["text"].weight)


def test_untied_weights_stay_two(tmp_path: Path) -> None:
    composed = MultimodalModel.around(language_model("qwen2"))
    composed.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert again.inputs["text"].weight is not again.outputs["text"].weight


@pytest.mark.parametrize("kind", ["llama", "phi3", "nemotron"])
def test_weights_are_the_models_own(kind: str) -> None:
    """Those of fused matrices too: what is learned by one is known to the other."""
    theirs = language_model(kind)
    composed = MultimodalModel.around(theirs)
    storages = {parameter.untyped_storage().data_ptr() for parameter in theirs.parameters()}
    assert {parameter.untyped_storage().data_ptr() for parameter in composed.parameters()} == storages
    ids = some_ids()
    composed(composed.batch_builder()([[text(row.tolist(), target="text")] for row in ids])).losses["text"].backward()
    with torch.no_grad():
        for parameter in composed.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    check_same(composed, theirs)


def test_state_of_the_model_is_kept() -> None:
    theirs = language_model("llama", attention_dropout=0.5).bfloat16().train()
    theirs.model.layers[0].requires_grad_(False)
    composed = MultimodalModel.around(theirs)
    assert composed.training and composed.trunk.training and theirs.training
    assert {parameter.dtype for parameter in composed.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in composed.trunk.layers[0].parameters())
    assert all(parameter.requires_grad for parameter in composed.trunk.layers[1].parameters())
    composed.eval()
    check_same(composed, theirs.eval(), atol=5e-2, rtol=2e-2)
    frozen = language_model("phi3").requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in MultimodalModel.around(frozen).parameters())


def test_images_are_added(tmp_path: Path) -> None:
    theirs = language_model("qwen2")
    composed = MultimodalModel.around(theirs)
    composed.inputs["vision"] = EVE2PatchEmbedding(dim=32, hidden_dim=16, patch_size=2, merge_size=2)
    assert list(composed.inputs) == ["text", "vision"] and composed.config["inputs"].keys() == {"text", "vision"}
    sample = [text([3, 4]), image(torch.rand(3, 8, 12)), text([5, 6, 7], target="text")]
    batch = composed.batch_builder()([sample, [text([8, 9], target="text")]])
    output = composed(batch)
    output.losses["text"].backward()
    assert all(parameter.grad is not None for parameter in composed.inputs["vision"].parameters())
    check_same(composed, theirs)
    composed.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(batch).hidden, output.hidden)
    options = Generation(max_tokens=3, sampling=GREEDY)
    made = [list(one.generate([sample[:2]], TextGrammar(50, stop=()), options)) for one in (composed, again)]
    assert made[0] == made[1] and len(made[0][0].segment.content) == 3


def test_parts_that_are_put_in_later_are_checked() -> None:
    composed = MultimodalModel.around(language_model("llama"))
    before = composed.inputs["text"]
    with pytest.raises(TypeError, match=r"inputs\['text'\] is a int"):
        composed.inputs["text"] = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"outputs\['more'\] is a Linear"):
        composed.outputs["more"] = nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="a part is named 'forward'"):
        composed.inputs["forward"] = nn.Linear(2, 32)
    assert composed.inputs["text"] is before and list(composed.outputs) == ["text"]
    composed.inputs["text"] = nn.Linear(2, 32)
    assert isinstance(composed.inputs["text"], nn.Linear) and list(composed.inputs) == ["text"]
    composed.inputs["text"] = lambda ids: torch.zeros(len(ids), 32)
    assert list(dict(composed.inputs.named_children())) == []


def test_a_tokenizer_of_transformers() -> None:
    theirs_tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(["<end>"]), eos_token="<end>")
    config = language_model("qwen3").config
    config.vocab_size = len(theirs_tokenizer) + 5
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    composed = MultimodalModel.around(theirs)
    tokenizer = TokenizerFile.of(theirs_tokenizer.backend_tokenizer)
    sentence = "a black cat on the mat"
    batch = composed.batch_builder(tokenizer)([[text(sentence, target="text")]])
    ids = theirs_tokenizer(sentence, return_tensors="pt")["input_ids"]
    assert batch.ids.tolist() == ids.tolist()
    torch.testing.assert_close(composed(batch).losses["text"], theirs(input_ids=ids, labels=ids).loss)
    grammar = TextGrammar(tokenizer.vocab_size, stop=(tokenizer["<end>"],))
    options = Generation(max_tokens=5, sampling=GREEDY)
    said = "".join(segment.content for _, segment in composed.generate([[text(sentence)]], grammar, options, tokenizer=tokenizer))
    made = theirs.generate(
        ids, max_new_tokens=5, do_sample=False, suppress_tokens=list(range(len(theirs_tokenizer), len(theirs_tokenizer) + 5))
    )
    assert said == theirs_tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_without_values() -> None:
    with torch.device("meta"):
        theirs = transformers.Qwen2ForCausalLM(language_model("qwen2", tied=True).config)
    composed = MultimodalModel.around(theirs)
    assert all(parameter.is_meta for parameter in composed.parameters())
    assert composed.inputs["text"].weight is composed.outputs["text"].weight


class Louder(transformers.LlamaForCausalLM):
    """Whose logits are no product of its states and its head."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits * 1.01
        return output


def several_devices() -> Any:
    made = language_model("llama")
    made.lm_head.to("meta")
    return made


def vision_and_text() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=40, **sizes), vision_config=transformers.CLIPVisionConfig(**sizes)
    )
    with torch.device("meta"):
        return transformers.LlavaForConditionalGeneration(config)


def encoder_decoder() -> Any:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.device("meta"):
        return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "options", "error", "said"),
    [
        (lambda: nn.Linear(2, 2), {}, TypeError, "model is a Linear; accepted: a causal language model of transformers"),
        (lambda: "Qwen/Qwen3-0.6B", {}, TypeError, "model is a str; accepted"),
        (lambda: language_model("llama").model, {}, TypeError, "get_output_embeddings of LlamaModel has none"),
        (encoder_decoder, {}, ValueError, "T5ForConditionalGeneration has an encoder and a decoder"),
        (vision_and_text, {}, ValueError, "LlavaForConditionalGeneration reads more than text"),
        (several_devices, {}, ValueError, "lies on cpu, meta; accepted: a model on one device"),
        (lambda: Louder(language_model("llama").config), {}, ValueError, "Louder is no embedding, trunk and head alone"),
        (lambda: language_model("nemotron"), {"trunk": "decoder"}, ValueError, "of model_type 'nemotron'"),
        (lambda: language_model("gemma2"), {"trunk": "transformers"}, ValueError, "layers that see a window"),
        (lambda: language_model("llama"), {"trunk": "llama"}, ValueError, "trunk is 'llama'; accepted"),
    ],
)
def test_what_is_refused(make: Any, options: dict[str, Any], error: type[Exception], said: str) -> None:
    given = make()
    with pytest.raises(error, match=said):
        MultimodalModel.around(given, **options)


def test_a_model_without_an_embedding_of_ids() -> None:
    theirs = language_model("llama")
    theirs.set_input_embeddings(nn.Identity())
    with pytest.raises(TypeError, match="get_input_embeddings of LlamaForCausalLM gives a Identity"):
        MultimodalModel.around(theirs)
