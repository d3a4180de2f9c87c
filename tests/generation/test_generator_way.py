"""An image generator as a head of a composed model: queries in the row, and a small UNet of diffusers."""

import pytest
import torch

from mmblocks import GREEDY, Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, image, text
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import GeneratorHead
from mmblocks.layers import DiffusersSampler
from mmblocks.pixels import DiffusersDenoiser, StateGenerator
from mmblocks.sequence.segments import Image, Segment, Text

DIM, BEGIN, END, SIZE = 16, 7, 8, (8, 12)
BLOCK = VectorBlock(begin=BEGIN, end=END, size=SIZE, head="image", input="none", whole=True)


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    sizes = {"in_channels": 3, "out_channels": 3, "block_out_channels": [4, 8], "layers_per_block": 1}
    heads = {"cross_attention_dim": 6, "attention_head_dim": 2, "norm_num_groups": 2}
    network = DiffusersDenoiser(kind="UNet2DConditionModel", arguments={**blocks, **sizes, **heads})
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=DIM)},
        trunk=Decoder(dim=DIM, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={
            "text": LMHead(dim=DIM, vocab_size=16),
            "image": GeneratorHead(dim=DIM, num_queries=3, generator=StateGenerator(network=network, sampler=sampler)),
        },
    ).eval()


def prompts() -> list[list[Segment]]:
    return [[text([1, 2, BEGIN])], [text([4, BEGIN])]]


def test_text_and_images_of_two_sizes_are_learned_in_one_pass(model: MultimodalModel) -> None:
    samples = [
        [text([1, BEGIN]), image(torch.rand(3, 8, 8), target="image"), text([END, 3], target="text")],
        [text([2, 1, BEGIN]), image(torch.rand(3, 4, 12), target="image", weight=0.5)],
    ]
    output = model(model.batch_builder()(samples, pack=16))
    assert output.token_losses["image"].shape == (2,)
    sum(output.losses.values()).backward()
    head = model.outputs["image"]
    assert isinstance(head, GeneratorHead)
    assert head.queries.grad is not None
    assert bool(head.queries.grad.abs().sum() > 0)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_an_image_then_text_that_reads_the_queries(model: MultimodalModel, guidance: float | None) -> None:
    grammar = VectorGrammar(BLOCK, vocab_size=16, stop=(0,))
    options = Generation(max_tokens=13, sampling=GREEDY, generator=0, guidance=guidance)
    without = None if guidance is None else [[text([9])]]
    (_, made), (_, after), *_ = model.generate(prompts()[:1], grammar, options, unconditional=without)
    assert isinstance(made, Image)
    assert made.pixels.shape == (3, *SIZE)
    if guidance is None:
        assert isinstance(after, Text)
        sample = [text([1, 2, BEGIN]), image(torch.rand(3, *SIZE), target="image"), text([END, *after.content])]
        batch = model.batch_builder()([sample])
        head = model.outputs["text"]
        assert isinstance(head, LMHead)
        logits = head.logits(model.hidden(batch)[0])
        logits[:, [BEGIN, END]] = -torch.inf
        count = len(after.content)
        assert logits[-count - 1 : -1].argmax(dim=-1).tolist() == list(after.content)


def test_equal_seeds_give_equal_images_alone_and_together(model: MultimodalModel) -> None:
    grammar = VectorGrammar(BLOCK, vocab_size=16)
    both = dict(model.generate(prompts(), grammar, Generation(generator=3)))
    ((_, alone),) = model.generate(prompts()[:1], grammar, Generation(generator=3))
    first, second = both[0], both[1]
    assert isinstance(first, Image)
    assert isinstance(second, Image)
    assert isinstance(alone, Image)
    torch.testing.assert_close(first.pixels, alone.pixels, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first.pixels, second.pixels)
