"""Parts of MAR, ACDiT and VAR in a model that reads and writes text too: one step of training, and an image after a prompt."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from mmblocks import Generation, LMHead, MultimodalModel, TextEmbedding, codes, text, vectors
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import MARDiffusionHead, NextScaleHead
from mmblocks.sequence.segments import Codes, Segment
from mmblocks.trunks import MaskedAutoencoder
from tests.models import test_acdit, test_mar, test_var

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' schedulers
NONE = {"mar": 4, "acdit": 5, "var": 5}
"""The class that stands for none."""


class Mixed(NamedTuple):
    """Parts of a published model beside text, an image, and its size."""

    model: MultimodalModel
    image: Segment
    size: tuple[int, ...]


def mixed(published: MultimodalModel, trunk: Any, dims: tuple[int, int], image: Segment, size: tuple[int, ...]) -> Mixed:
    """The published model's parts, with a trunk of one's own or its own."""
    inputs = {"text": TextEmbedding(vocab_size=16, dim=dims[0]), **published.inputs}
    outputs = {"text": LMHead(dim=dims[1], vocab_size=16), **published.outputs}
    return Mixed(MultimodalModel(inputs=inputs, trunk=trunk, outputs=outputs), image, size)


def mar() -> Mixed:
    """Its encoder and decoder in a trunk of longer rows."""
    model = test_mar.tiny(dropout=0.0)
    trunk = MaskedAutoencoder(encoder=model.trunk.encoder, decoder=model.trunk.decoder, num_positions=32)
    values = torch.randn(2, 3, 3)
    image = vectors(values, input="image", target="image", given={"label": 2})
    head = MARDiffusionHead(dim=12, token_dim=3, width=8, num_blocks=1, steps=2)
    for parameter in head.parameters():  # which are zero at first
        torch.nn.init.normal_(parameter, std=0.2)
    return mixed(model.multimodal(head), trunk, (16, 12), image, (2, 3))


def acdit() -> Mixed:
    """One block of six tokens."""
    model = test_acdit.tiny()
    image = vectors(torch.randn(2, 3, 3), input="image", target="image", given={"label": 2})
    return mixed(model.multimodal(), model.trunk, (24, 24), image, (2, 3))


def var() -> Mixed:
    """With its tokenizer's codes."""
    model = test_var.image_model()
    published = model.trunk.multimodal(model.tokenizer.bottleneck)
    image = codes(torch.randint(10, (11,)), input="codes", target="image", given={"label": 2})
    return mixed(published, model.trunk.trunk, (16, 16), image, (11,))


@pytest.mark.parametrize("build", [mar, acdit, var])
def test_one_step_and_an_image_after_a_prompt(build: Callable[[], Mixed]) -> None:
    torch.manual_seed(0)
    model, image, size = build()
    batch = model.batch_builder()([[text([1, 7]), image, text([8, 2], target="text")], [text([1, 3, 7]), image]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> torch.Tensor:
        torch.manual_seed(1)
        losses = model(batch).losses
        return losses["text"] + losses["image"]

    before = step()
    before.backward()
    learned = [name for name, p in model.named_parameters() if "quantizer" not in name]
    assert [name for name in learned if model.get_parameter(name).grad is None] == []
    optimizer.step()
    assert step() < before

    model.eval()
    name = build.__name__
    block = VectorBlock(begin=7, end=8, size=size, head="image", input=image.input, whole=True)
    made = []
    for label in (1, 3):
        given = {"label": torch.tensor([label, NONE[name]])}
        options = Generation(max_tokens=math.prod(size) + 1, guidance=2.0, generator=0, given=given)
        grammar = VectorGrammar(block, vocab_size=16)
        ((row, segment),) = model.generate([[text([1, 7])]], grammar, options, unconditional=[[text([7])]])
        made.append(segment.grid if isinstance(segment, Codes) else segment.values)
    assert row == 0 and made[0].shape == made[1].shape
    assert made[0].numel() == (11 if name == "var" else 18) and not torch.equal(*made)  # another class, another image


def test_a_head_takes_the_weights_of_var() -> None:
    """Tokens are shared, and refused where the quantizer has others."""
    model = test_var.image_model()
    head = model.trunk.multimodal(model.tokenizer.bottleneck).outputs["image"]
    assert head.tokens is model.trunk.tokens and head.span == model.trunk.tokens.span
    with pytest.raises(ValueError, match=r"tokens has .* accepted: the quantizer's"):
        NextScaleHead(dim=16, quantizer=model.tokenizer.bottleneck, tokens=test_var.tiny(num_codes=11).tokens)
