"""A language model that images were given to writes the very logits it wrote before, whatever the image weights have learned."""

import pytest
import torch

from mmblocks import GREEDY, Generation, MultimodalModel, TextGrammar, image, text
from mmblocks.checkpoints.surgery.graft import add_part
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.trunks import GatedCrossAttentionDecoder, ModalityLoRADecoder, RoutedDecoder
from tests.shared.tiny import TOKENIZER, VOCABULARY, WIDTH, tiny_model

SURGERIES = {
    "norms, attention and mlp": lambda trunk: RoutedDecoder.from_decoder(trunk),
    "mlp alone": lambda trunk: RoutedDecoder.from_decoder(trunk, routed=("mlp",)),
    "low rank": lambda trunk: ModalityLoRADecoder.from_decoder(trunk, rank=2),
    "cross-attention": lambda trunk: GatedCrossAttentionDecoder(trunk=trunk, every=1, context_dim=8),
}


def language_model() -> MultimodalModel:
    whole = tiny_model().eval()
    return MultimodalModel(inputs={"text": whole.inputs["text"]}, trunk=whole.trunk, outputs=dict(whole.outputs.items()))


def logits_of(model: MultimodalModel, prompts) -> list[torch.Tensor]:
    """Of the prompt and of every step after it."""
    seen = []
    hooks = [lambda scores: seen.append(scores.logits) or scores.logits]
    batch = model.batch_builder(TOKENIZER)(prompts, padding="left")
    for _ in generate_ids(model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=4, sampling=GREEDY, hooks=hooks)):
        pass
    return seen


@pytest.mark.parametrize("name", SURGERIES)
def test_text_alone_has_the_logits_it_had(name) -> None:
    model, prompts = language_model(), [[text("what is it?")], [text("a")]]
    before = logits_of(model, prompts)
    old = {id(parameter) for parameter in model.trunk.parameters()}
    trunk = SURGERIES[name](model.trunk).eval()
    for key, parameter in trunk.named_parameters():
        if ".vision" in key or (name == "cross-attention" and id(parameter) not in old):
            torch.nn.init.normal_(parameter)  # as if trained
    seeing = MultimodalModel(inputs=dict(model.inputs.items()), trunk=trunk, outputs=dict(model.outputs.items()))
    add_part(seeing, "inputs", "vision", EVE2PatchEmbedding(dim=WIDTH, hidden_dim=16, patch_size=2, merge_size=2))
    after = logits_of(seeing, prompts)
    assert len(before) == 4 and all(map(torch.equal, before, after))
    if name != "cross-attention":  # which is given its images otherwise
        photo = torch.rand(3, 4, 8)
        changed, plain = (
            logits_of(each, [[image(photo), text("?")]])[0] for each in (seeing, tiny_model(trunk=model.trunk).eval())
        )
        assert not torch.allclose(changed, plain, atol=1e-3)
