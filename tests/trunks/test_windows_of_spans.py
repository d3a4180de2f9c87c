"""Sliding windows with noised copies in the row: a copy takes no place from what comes after it."""

import torch
from torch import nn

from mmblocks import GREEDY, Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, text, vectors
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.sequence.segments import Text, Vectors
from mmblocks.trunks import Layer, llama_layer
from mmblocks.trunks.llama import with_attention


def model() -> MultimodalModel:
    torch.manual_seed(0)
    layer = with_attention(llama_layer(num_heads=4, mlp_dim=48), window=4)
    assert isinstance(layer, Layer)
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=32), "latents": nn.Linear(4, 32)},
        trunk=Decoder(dim=32, num_layers=3, layers=layer),
        outputs={"text": LMHead(dim=32, vocab_size=16), "image": SpanDenoisingHead(dim=32, channels=4, sampler=sampler)},
    ).eval()


def test_clean_tokens_have_the_states_that_they_have_without_copies() -> None:
    part = model()
    latents = [vectors(torch.randn(2, 3, 4), input="latents", target="image") for _ in range(2)]
    sample = [text([1, 2, 3, 7]), latents[0], text([8, 4, 5, 7]), latents[1], text([8, 6])]
    learned, prompt = part.batch_builder()([sample]), part.batch_builder()([sample], learn=False)
    clean = ~learned.table.noisy[0]
    torch.testing.assert_close(part.hidden(learned)[0, clean], part.hidden(prompt)[0], rtol=1e-5, atol=1e-5)


def test_text_after_a_written_image_is_that_of_the_row_read_anew() -> None:
    part = model()
    block = VectorBlock(begin=7, end=8, size=(2, 3), head="image", input="latents", whole=True)
    options = Generation(max_tokens=16, sampling=GREEDY, generator=0)
    rule = VectorGrammar(block, vocab_size=16, stop=(15,))
    (_, image), (_, after), *_ = part.generate([[text([1, 2, 3, 4, 5, 7])]], rule, options)
    assert isinstance(image, Vectors)
    assert isinstance(after, Text)
    batch = part.batch_builder()([[text([1, 2, 3, 4, 5, 7]), image, text([8, *after.content])]], learn=False)
    head = part.outputs["text"]
    assert isinstance(head, LMHead)
    logits = head.logits(part.hidden(batch)[0])
    logits[:, [7, 8]] = -torch.inf
    count = len(after.content)
    assert logits[-count - 1 : -1].argmax(dim=-1).tolist() == list(after.content)
