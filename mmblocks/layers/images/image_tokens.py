"""What embedders of ragged images share: checks, layouts, and how the tokens of several images are packed.

Shapes: H and W pixels, N tokens of all images, P patch tokens among them, B images, D width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.layers.images.pixels import check_pixels, widened
from mmblocks.sequence.tokens import ImageLayout, TokenKind, VisionTokens

Images = Sequence[Float[Tensor, "3 _ _"]] | Float[Tensor, "_ 3 _ _"]
"""Images, each of its own size; a batch (B, 3, H, W) is B of them."""


def check_images(images: Images, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The images one by one. Refuses none at all, and what is no RGB image (3, H, W) in [0, 1].

    Args:
        images: see ``Images``.
        dtype: of the part that reads them; pixels of another come back in float32 or better, to be cast after normalising.

    Raises:
        TypeError: pixels that are not floating point.
        ValueError: no image, another shape, or values outside [0, 1], NaN included (values are checked on CPU).
    """
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; accepted: a list of images (3, H, W), or a batch (B, 3, H, W)")
    if len(images) == 0:
        raise ValueError("images is empty; accepted: at least one")
    for image in images:
        check_pixels(image, num_axes=3)
    return [image if dtype is None else widened(image, dtype) for image in images]


def grid_of(height: int, width: int, token_size: int) -> tuple[int, int]:
    """Rows and columns of square tokens.

    Raises:
        ValueError: if a side is no positive multiple of ``token_size``.
    """
    if height <= 0 or width <= 0 or height % token_size or width % token_size:
        near = tuple(max(round(side / token_size), 1) * token_size for side in (height, width))
        raise ValueError(f"image is {height}x{width}; accepted: multiples of {token_size}, such as {near[0]}x{near[1]}")
    return height // token_size, width // token_size


def grid_layout(rows: int, columns: int, *, class_token: bool = False, newline: bool = False) -> ImageLayout:
    """Rows of patches; with a class token before all of them, and a newline token after each row, where asked for."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns + newline), indexing="ij")
    grid = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
    kind = torch.where(grid[:, 2] == columns, int(TokenKind.NEWLINE), int(TokenKind.PATCH))
    if not class_token:
        return ImageLayout(grid=grid, kind=kind)
    return ImageLayout(
        grid=torch.cat([torch.zeros(1, 3, dtype=torch.long), grid]),
        kind=torch.cat([torch.tensor([int(TokenKind.CLASS)]), kind]),
    )


def pack(
    layouts: Sequence[ImageLayout],
    patches: Float[Tensor, "P D"],
    *,
    newline: Float[Tensor, " D"] | None = None,
    classes: Float[Tensor, "B D"] | None = None,
) -> VisionTokens:
    """Puts vectors where the layouts have their tokens, image after image.

    Args:
        layouts: of each image.
        patches: of all images, in their order.
        newline: for every newline token; may be left out where no layout has one.
        classes: of each image; may be left out where no layout has a class token.
    """
    kind = torch.cat([layout.kind for layout in layouts])
    image = torch.cat([torch.full_like(layout.kind, index) for index, layout in enumerate(layouts)])
    structure = [row for row in (None if newline is None else newline[None], classes) if row is not None]
    if structure:
        # One table: newline, classes, patches. int: torch.compile does not compare with enum members.
        num_newlines, num_before = int(newline is not None), sum(len(rows) for rows in structure)
        is_patch, is_class = kind == int(TokenKind.PATCH), kind == int(TokenKind.CLASS)
        source = torch.where(is_patch, is_patch.cumsum(0) - 1 + num_before, 0)
        source = torch.where(is_class, image + num_newlines, source)
        patches = torch.cat([*structure, patches]).index_select(0, source.to(patches.device))
    return VisionTokens(
        embeds=patches,
        image=image.to(patches.device),
        grid=torch.cat([layout.grid for layout in layouts]).to(patches.device),
        kind=kind.to(patches.device),
    )


def sizes(images: Sequence[Tensor] | Tensor) -> list[tuple[int, int]]:
    """Height and width of each image (C, H, W).

    Raises:
        ValueError: another number of axes.
    """
    for image in images:
        if image.ndim != 3:
            raise ValueError(f"an image has shape {tuple(image.shape)}; accepted: (C, H, W)")
    return [(image.shape[1], image.shape[2]) for image in images]


def positions(grids: Sequence[tuple[int, int]], device: torch.device) -> Int[Tensor, "P 2"]:
    """(row, column) of every place of several grids, packed."""
    return torch.cat([torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in grids]).to(device)
