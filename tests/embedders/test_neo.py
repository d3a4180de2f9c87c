"""NEO's stem: ragged batches equal single images, features are turned by place, sizes that do not fit are refused."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import gelu

from mmblocks import Block
from mmblocks.embedders.neo import NEOPatchEmbedding
from mmblocks.layers.images.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from mmblocks.sequence.tokens import TokenKind

SIZES = [(4, 4), (8, 4), (4, 12), (20, 8), (8, 4)]


def stem(**options) -> NEOPatchEmbedding:
    torch.manual_seed(0)
    defaults = {"dim": 12, "hidden_dim": 8, "patch_size": 2, "min_pixels": 64, "max_pixels": 256}
    return NEOPatchEmbedding(**(defaults | options))


def test_a_ragged_batch_equals_single_images() -> None:
    part, images = stem(), [torch.rand(3, *size) for size in SIZES]
    tokens = part(images)
    for number, pixels in enumerate(images):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], part([pixels]).embeds)


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_known_from_the_size(size) -> None:
    tokens, layout = stem()([torch.rand(3, *size)]), stem().layout(*size)
    assert torch.equal(tokens.grid, layout.grid) and torch.equal(tokens.kind, layout.kind)
    assert (layout.kind == TokenKind.PATCH).all() and len(layout.kind) == size[0] * size[1] // 16
    assert layout.grid[-1].tolist() == [0, size[0] // 4 - 1, size[1] // 4 - 1]


@pytest.mark.parametrize("merge_size", [1, 2, 3])
def test_the_tokens_are_those_of_two_convolutions_with_a_rotation_by_place(merge_size) -> None:
    part, side = stem(merge_size=merge_size), 2 * merge_size
    pixels = torch.rand(3, 2 * side, 3 * side)
    hidden = gelu(part.patch(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)[None]))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float) for n in hidden.shape[2:]), indexing="ij")
    pairs = torch.view_as_complex(hidden[0].unflatten(0, (4, 2)).movedim(1, -1).contiguous())
    angles = torch.stack([column, column / 100, row, row / 100])  # a half of four channels: two pairs, 10000^(-1/2) apart
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).movedim(-1, 1).flatten(0, 1)
    wanted = part.merge(turned[None])[0].flatten(1).T
    torch.testing.assert_close(part([pixels]).embeds, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(7, 9), (200, 1), (1, 1), (300, 200)])
def test_any_image_becomes_whole_tokens_within_the_areas(mode, size) -> None:
    pixels = stem().preprocess(Image.new(mode, size))
    assert pixels.shape[1] * pixels.shape[2] >= 64 and (pixels.shape[1] * pixels.shape[2] <= 256 or 4 in pixels.shape)
    stem()([pixels])


def test_several_images_share_the_area() -> None:
    photo = Image.new("RGB", (300, 300))
    assert stem().preprocess(photo).shape == (3, 16, 16)
    assert stem().preprocess(photo, num_images=2).shape == (3, 16, 16)
    assert stem().preprocess(photo, num_images=8).shape == (3, 8, 8)
    assert stem().preprocess(photo, num_images=99).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="num_images is 0"):
        stem().preprocess(photo, num_images=0)


def test_what_shines_through_is_white() -> None:
    assert (stem().preprocess(Image.new("RGBA", (9, 9), (0, 0, 0, 0))) == 1).all()


@pytest.mark.parametrize(("size", "message"), [((201, 1), "1x201"), ((0, 4), "4x0")])
def test_images_too_long_or_empty_are_refused(size, message) -> None:
    with pytest.raises(ValueError, match=f"image is {message}"):
        stem().preprocess(Image.new("RGB", size))


def test_gradients_reach_every_parameter() -> None:
    part = stem()
    part([torch.rand(3, 8, 12), torch.rand(3, 4, 4)]).embeds.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())


def test_bf16_and_saving(tmp_path) -> None:
    part, images = stem(), [torch.rand(3, 8, 4), torch.rand(3, 4, 4)]
    part.save_pretrained(tmp_path)
    wanted = part(images).embeds
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(images).embeds, wanted)
    made = part.bfloat16()(images).embeds
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), wanted, atol=0.05, rtol=0.05)


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


def test_widths_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_dim is 6; accepted: multiples of 4"):
        stem(hidden_dim=6)


def test_configs_may_hold_lists_of_one() -> None:
    (layout,) = NEOPatchEmbedding.layouts
    vision = {"hidden_size": 8, "llm_hidden_size": [12], "patch_size": 2, "downsample_ratio": [0.5], "rope_theta_vision": 100.0}
    arguments = layout.arguments({"vision_config": vision | {"max_pixels": 512}})
    assert arguments == {"dim": 12, "hidden_dim": 8, "patch_size": 2, "merge_size": 2, "rope_theta": 100.0} | {
        "min_pixels": 65536,
        "max_pixels": 512,
    }
