"""Draws the pictures of the documentation: ``python docs/pictures.py``."""

from pathlib import Path

import torch
from PIL import Image
from skimage.data import astronaut

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

SIDE = 240


def draw_visual_prompts(file: Path) -> None:
    """One picture for each mark, side by side, in the order in which the page names them."""
    pixels = pixels_of(Image.fromarray(astronaut()))[:, :400, :400]
    rows, columns = torch.meshgrid(torch.arange(400), torch.arange(400), indexing="ij")
    mask = ((rows - 115) / 85) ** 2 + ((columns - 222) / 62) ** 2 < 1  # about her head
    box = box_of(mask)
    marked = [
        blur_reverse_mask(pixels, mask, sigma=8),
        grey_reverse_mask(pixels, mask),
        tint_mask(pixels, mask),
        draw_box(pixels, box, width=5),
        draw_circle(pixels, box, width=5),
        crop(pixels, box, margin=20),
    ]
    sheet = Image.new("RGB", (len(marked) * (SIDE + 6) - 6, SIDE), "white")
    for number, one in enumerate(marked):
        image = image_of(one)
        image.thumbnail((SIDE, SIDE))
        sheet.paste(image, (number * (SIDE + 6) + (SIDE - image.width) // 2, (SIDE - image.height) // 2))
    file.parent.mkdir(exist_ok=True)
    sheet.save(file, quality=85)


if __name__ == "__main__":
    draw_visual_prompts(Path(__file__).parent / "images" / "visual_prompts.jpg")
