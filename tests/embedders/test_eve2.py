"""EVEv2's stem: ragged batches equal single images, layouts say what comes out, sizes that do not fit are refused."""

import pytest
import torch
from PIL import Image

from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.sequence.tokens import TokenKind


def stem() -> EVE2PatchEmbedding:
    torch.manual_seed(0)
    return EVE2PatchEmbedding(dim=12, hidden_dim=8, patch_size=2, merge_size=2, max_size=16)


SIZES = [(4, 4), (8, 4), (4, 12), (20, 8), (8, 4)]


def test_a_ragged_batch_equals_single_images() -> None:
    images = [torch.rand(3, *size) for size in SIZES]
    tokens = stem()(images)
    for number, pixels in enumerate(images):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], stem()([pixels]).embeds)


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_known_from_the_size(size) -> None:
    tokens = stem()([torch.rand(3, *size)])
    layout = stem().layout(*size)
    rows, columns = size[0] // 4, size[1] // 4
    assert torch.equal(tokens.grid, layout.grid) and torch.equal(tokens.kind, layout.kind)
    assert len(layout.kind) == 1 + rows * (columns + 1)
    body = layout.kind[1:].view(rows, columns + 1)
    assert layout.kind[0] == TokenKind.CLASS
    assert (body[:, :-1] == TokenKind.PATCH).all() and (body[:, -1] == TokenKind.NEWLINE).all()
    assert layout.grid[-1].tolist() == [0, rows - 1, columns]


def test_the_order_is_class_then_rows_each_closed_by_the_split_token() -> None:
    part = stem()
    pixels = torch.rand(3, 8, 4)
    features = part.merge(torch.nn.functional.gelu(part.patch((pixels[None] - mean_of_clip()) / std_of_clip())))[0]
    wanted = [part.class_token, features[:, 0, 0], part.split_token, features[:, 1, 0], part.split_token]
    torch.testing.assert_close(part([pixels]).embeds, torch.stack(wanted))


def mean_of_clip() -> torch.Tensor:
    return torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)


def std_of_clip() -> torch.Tensor:
    return torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.mark.parametrize(("size", "near"), [((5, 8), "4x8"), ((4, 0), "4x4"), ((1, 1), "4x4"), ((11, 30), "12x32")])
def test_sizes_that_are_no_multiple_are_refused_with_one_that_is(size, near) -> None:
    with pytest.raises(ValueError, match=f"image is {size[0]}x{size[1]}; accepted: multiples of 4, such as {near}"):
        stem().layout(*size)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(4, 4, 3), ValueError, r"\(4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4), ValueError, r"\(1, 3, 4, 4\)"),
        (torch.full((3, 4, 4), 255.0), ValueError, r"\[255, 255\]"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "nan"),
    ],
)
def test_what_is_no_image_is_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        stem()([pixels])


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="images is empty"):
        stem()([])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
@pytest.mark.parametrize("size", [(7, 9), (1, 40), (64, 3)])
def test_any_image_is_brought_to_the_area_and_to_whole_tokens(mode, size) -> None:
    pixels = stem().preprocess(Image.new(mode, size))
    assert pixels.shape[0] == 3 and pixels.shape[1] % 4 == 0 and pixels.shape[2] % 4 == 0
    assert 16 * 16 <= pixels.shape[1] * pixels.shape[2] < 16 * 16 + 4 * (pixels.shape[1] + pixels.shape[2])
    assert pixels.min() >= 0 and pixels.max() <= 1
    stem()([pixels])
