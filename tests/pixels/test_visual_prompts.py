import pytest
import torch
from PIL import ImageFilter

from mmblocks.layers.images.pixels import image_of, pixels_of
from mmblocks.pixels.visual_prompts import (
    blur_reverse_mask,
    box_of,
    crop,
    draw_box,
    draw_circle,
    grey_reverse_mask,
    tint_mask,
)

GREY = torch.full((3, 12, 20), 0.25)
MASK = torch.zeros(12, 20, dtype=torch.bool)
MASK[3:7, 5:15] = True
BOX = (5, 3, 15, 7)


def test_the_box_of_a_mask_and_its_crop() -> None:
    assert box_of(MASK) == BOX
    pixels = torch.rand(3, 12, 20)
    assert torch.equal(crop(pixels, BOX), pixels[:, 3:7, 5:15])
    assert torch.equal(crop(pixels, BOX, margin=6), pixels[:, :, :])
    assert crop(pixels, BOX, margin=2).shape == (3, 8, 14)


def test_a_frame_lies_inside_its_box() -> None:
    drawn = draw_box(GREY, BOX, width=1)
    red = (drawn == torch.tensor([1.0, 0, 0])[:, None, None]).all(0)
    assert red[3:7, 5:15].sum() == red.sum() == 2 * 10 + 2 * 2 and not red[4:6, 6:14].any()
    assert torch.equal(drawn[:, ~red], GREY[:, ~red]) and (GREY == 0.25).all()
    assert (draw_box(GREY, BOX, width=5)[0, 3:7, 5:15] == 1).all()


def test_a_circle_touches_its_box_and_is_round() -> None:
    image = torch.zeros(3, 41, 41)
    drawn = draw_circle(image, (0, 0, 41, 41), colour=(0, 1, 0), width=2)[1] > 0
    assert drawn[0, 20] and drawn[20, 0] and drawn[20, 40] and not drawn[20, 20] and not drawn[0, 0]
    assert torch.equal(drawn, drawn.T) and torch.equal(drawn, drawn.flip(0))
    rows, columns = drawn.nonzero().T
    distance = ((rows - 20) ** 2 + (columns - 20) ** 2).sqrt()
    assert distance.min() >= 18 and distance.max() <= 20.5


def test_what_is_outside_is_blurred() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(3, 40, 60)
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 10:30] = True
    blurred = blur_reverse_mask(pixels, mask, sigma=3)
    assert torch.equal(blurred[:, mask], pixels[:, mask])
    theirs = pixels_of(image_of(pixels).filter(ImageFilter.GaussianBlur(3)))  # of box filters, and in whole levels
    outside = ~mask
    outside[:10], outside[-10:], outside[:, :10], outside[:, -10:] = False, False, False, False
    assert (blurred - theirs)[:, outside].abs().max() < 0.03 < (pixels - theirs)[:, outside].abs().max()
    even = torch.full((3, 9, 7), 0.5)
    one = torch.zeros(9, 7, dtype=torch.bool)
    one[0, 0] = True
    torch.testing.assert_close(blur_reverse_mask(even, one), even)  # a blur far wider than the image


def test_colours_may_go_or_come() -> None:
    pixels = torch.rand(3, 12, 20)
    grey = grey_reverse_mask(pixels, MASK)
    assert torch.equal(grey[:, MASK], pixels[:, MASK]) and torch.equal(grey[0, ~MASK], grey[2, ~MASK])
    luma = pixels_of(image_of(pixels).convert("L"))
    torch.testing.assert_close(grey[:, ~MASK], luma[:, ~MASK], atol=0.01, rtol=0)
    tinted = tint_mask(pixels, MASK, colour=(0, 0, 1), alpha=0.25)
    torch.testing.assert_close(tinted[2, MASK], pixels[2, MASK] * 0.75 + 0.25)
    assert torch.equal(tinted[:, ~MASK], pixels[:, ~MASK])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_box(GREY, (5, 3, 21, 7)), ValueError, r"box is \(5, 3, 21, 7\).* 20 wide and 12 high"),
        (lambda: crop(GREY, (5, 3, 5, 7)), ValueError, "not empty"),
        (lambda: crop(GREY, BOX, margin=-1), ValueError, "margin is -1"),
        (lambda: draw_circle(GREY, BOX, colour=(255, 0, 0)), ValueError, r"colour is \(255, 0, 0\)"),
        (lambda: draw_circle(GREY, BOX, width=0), ValueError, "width is 0"),
        (lambda: draw_box(GREY[None], BOX), ValueError, r"accepted: \(3, H, W\)"),
        (lambda: draw_box((GREY * 255).byte(), BOX), TypeError, "divide uint8 by 255"),
        (lambda: blur_reverse_mask(GREY * 5, MASK), ValueError, r"accepted: \[0, 1\]"),
        (lambda: blur_reverse_mask(GREY, MASK, sigma=0), ValueError, "sigma is 0"),
        (lambda: blur_reverse_mask(GREY, MASK.T), ValueError, r"mask has shape \(20, 12\); accepted: \(12, 20\)"),
        (lambda: grey_reverse_mask(GREY, MASK.float()), TypeError, "mask is torch.float32; accepted: bool"),
        (lambda: tint_mask(GREY, MASK & False), ValueError, "marks nothing"),
        (lambda: tint_mask(GREY, MASK, alpha=2), ValueError, "alpha is 2"),
        (lambda: box_of(MASK & False), ValueError, "marks nothing"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
