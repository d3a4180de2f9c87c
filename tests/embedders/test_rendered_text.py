"""Text as pixels: strips of whole tokens, closed by a black patch, that differ where the text does."""

import pytest
import torch
from PIL import Image

from mmblocks import Block
from mmblocks.embedders.rendered_text import RenderedTextEmbedding
from mmblocks.layers.images.pixels import image_of

TEXTS = ["A cat", "", "The quick brown fox jumps over the lazy dog.", "i"]


def part(**options) -> RenderedTextEmbedding:
    torch.manual_seed(0)
    return RenderedTextEmbedding(**{"dim": 12, **options})


@pytest.mark.parametrize("options", [{}, {"patches_per_token": 2}, {"patch_size": 24, "font_size": 20}, {"binary": False}])
def test_strips_have_whole_tokens_and_end_in_black(options) -> None:
    embedding = part(**options)
    side, wide = embedding.patch_size, embedding.token_width
    strips = [embedding.render(text) for text in TEXTS]
    for strip, text in zip(strips, TEXTS, strict=True):
        assert strip.shape[:2] == (3, side) and strip.shape[2] % wide == 0
        assert not strip[:, :, -wide : strip.shape[2] - wide + side].any()
        written = strip[0, :, :-wide]
        assert (written < 0.5).any() == bool(text)
        assert not embedding.binary or set(strip.unique().tolist()) <= {0.0, 1.0}
        # Nothing is cut off: the first column and the top and bottom rows stay white.
        assert (written[:, :1] == 1).all() and (written[0] == 1).all()
    assert strips[2].shape[2] > strips[0].shape[2] > strips[1].shape[2] == wide
    tokens = embedding(strips)
    assert tokens.image.bincount().tolist() == [strip.shape[2] // wide for strip in strips]
    for number, strip in enumerate(strips):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], embedding([strip]).embeds)


def test_a_text_that_goes_on_begins_alike() -> None:
    embedding = part()
    short, long = embedding.render("A cat"), embedding.render("A cat sat")
    known = short.shape[2] - 2 * embedding.token_width
    assert torch.equal(short[..., :known], long[..., :known])
    assert torch.equal(embedding.render(" A\n cat\t"), short)


def test_a_picture_of_text_becomes_the_strip_again() -> None:
    embedding = part()
    strip = embedding.render("A cat")
    assert torch.equal(embedding.preprocess(image_of(strip)), strip)
    assert embedding.preprocess(Image.new("RGBA", (64, 40))).min() == 1  # transparent: white


def test_learning_saving_and_half_precision(tmp_path) -> None:
    embedding, strips = part(), [part().render(text) for text in TEXTS]
    embedding.save_pretrained(tmp_path)
    made = embedding(strips).embeds
    assert torch.equal(Block.from_pretrained(tmp_path)(strips).embeds, made)
    made.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in embedding.parameters())
    assert embedding.bfloat16()(strips).embeds.dtype == torch.bfloat16


def test_what_is_no_strip_is_refused() -> None:
    with pytest.raises(ValueError, match="image is 16x20; accepted: 16 x multiples of 16"):
        part()([torch.rand(3, 16, 20)])
    with pytest.raises(ValueError, match="image is 8x16"):
        part().layout(8, 16)
    with pytest.raises(ValueError, match="patches_per_token 0"):
        part(patches_per_token=0)
    with pytest.raises(OSError, match="cannot open resource"):
        part(font="/nowhere/font.ttf").render("A cat")
