"""Fuyu's patch embedding: against transformers' image processor, with and without newlines."""

import math

import pytest
import torch
from einops import rearrange
from PIL import Image

from mmblocks import Block
from mmblocks.embedders.fuyu import FuyuPatchEmbedding
from mmblocks.sequence.tokens import TokenKind

SIZES = [(4, 4), (8, 4), (4, 12), (20, 8), (8, 4)]


def stem() -> FuyuPatchEmbedding:
    torch.manual_seed(0)
    return FuyuPatchEmbedding(dim=12, patch_size=4, max_height=24, max_width=40)


@pytest.mark.parametrize("closed", [True, False])
def test_a_ragged_batch_equals_single_images(closed) -> None:
    part, images = stem(), [torch.rand(3, *size) for size in SIZES]
    newline = torch.randn(12) if closed else None
    tokens = part(images, newline)
    for number, pixels in enumerate(images):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], part([pixels], newline).embeds)


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_known_from_the_size(size) -> None:
    newline = torch.randn(12)
    tokens, layout = stem()([torch.rand(3, *size)], newline), stem().layout(*size, newline=True)
    rows, columns = size[0] // 4, size[1] // 4
    assert torch.equal(tokens.grid, layout.grid) and torch.equal(tokens.kind, layout.kind)
    body = layout.kind.view(rows, columns + 1)
    assert (body[:, :-1] == TokenKind.PATCH).all() and (body[:, -1] == TokenKind.NEWLINE).all()
    assert torch.equal(tokens.embeds[tokens.kind == TokenKind.NEWLINE], newline.expand(rows, -1))
    plain = stem().layout(*size)
    assert (plain.kind == TokenKind.PATCH).all() and len(plain.kind) == rows * columns


@pytest.mark.parametrize("size", [(40, 24), (13, 7), (1, 1), (39, 3), (90, 31), (50, 200), (300, 11)])
def test_images_are_prepared_as_by_transformers(size) -> None:
    import transformers

    # The one that computes with numpy had the plain name before.
    published = getattr(transformers, "FuyuImageProcessorPil", None) or transformers.FuyuImageProcessor
    part, photo = stem(), Image.effect_noise(size, 90).convert("RGB")
    settings = {"size": {"height": 24, "width": 40}, "patch_size": {"height": 4, "width": 4}}
    made = published(**settings)(photo, return_tensors="pt", input_data_format="channels_last")
    height, width = (int(made[f"image_unpadded_{side}s"][0][0]) for side in ("height", "width"))
    whole = [math.ceil(side / 4) * 4 for side in (height, width)]
    image = torch.as_tensor(made["images"][0][0])[:, : whole[0], : whole[1]]
    pixels = part.preprocess(photo)
    torch.testing.assert_close(pixels * 2 - 1, image.float(), atol=1e-6, rtol=1e-6)

    patches = rearrange(image.float(), "c (h p) (w q) -> (h w) (p q c)", p=4, q=4)
    torch.testing.assert_close(part([pixels]).embeds, part.linear(patches), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(7, 9), (2000, 1), (1, 2000)])
def test_any_image_becomes_whole_patches(mode, size) -> None:
    pixels = stem().preprocess(Image.new(mode, size))
    assert pixels.shape[1] % 4 == 0 and pixels.shape[2] % 4 == 0
    tokens = stem()([pixels])
    assert len(tokens.embeds) == len(stem().layout(*pixels.shape[1:]).grid) and tokens.embeds.isfinite().all()


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="image is 5x0"):
        stem().preprocess(Image.new("RGB", (0, 5)))


def test_gradients_reach_every_parameter_and_the_newline() -> None:
    part, newline = stem(), torch.randn(12, requires_grad=True)
    part([torch.rand(3, 8, 12), torch.rand(3, 4, 4)], newline).embeds.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in (newline, *part.parameters()))


def test_bf16_and_saving(tmp_path) -> None:
    part, images = stem(), [torch.rand(3, 8, 4), torch.rand(3, 4, 4)]
    part.save_pretrained(tmp_path)
    wanted = part(images).embeds
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(images).embeds, wanted)
    torch.testing.assert_close(part.bfloat16()(images).embeds.float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "nan"),
        (torch.zeros(3, 5, 8), ValueError, "image is 5x8; accepted: multiples of 4, such as 4x8"),
    ],
)
def test_what_is_no_image_is_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        stem()([pixels])


def test_the_config_may_be_of_either_form() -> None:
    for layout in FuyuPatchEmbedding.layouts:
        assert layout.arguments({"patch_size": 30, "hidden_size": 8}) == {"dim": 8, "patch_size": 30}
        nested = {"patch_size": 30, "hidden_size": 9, "text_config": {"hidden_size": 8}}
        assert layout.arguments(nested) == {"dim": 8, "patch_size": 30}
        with pytest.raises(ValueError, match="num_channels is 4"):
            layout.arguments({"patch_size": 30, "hidden_size": 8, "num_channels": 4})


def test_files_from_before_transformers_renamed_them_are_read() -> None:
    (hub,) = (layout for layout in FuyuPatchEmbedding.layouts if layout.name == "fuyu-hub")
    names = ["vision_embed_tokens.weight", "vision_embed_tokens.bias", "language_model.model.embed_tokens.weight"]
    assert [hub.to_ours(name) for name in names] == [("linear.weight",), ("linear.bias",), ()]
    assert [hub.to_theirs(name) for name in ("linear.weight", "linear.bias")] == [(name,) for name in names[:2]]
