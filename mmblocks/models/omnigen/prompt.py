"""OmniGen's rows: text and input images, the time, and the image that is made.

Shapes: B rows, L tokens, C channels of a latent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmblocks.sequence.tokens import NO_SPAN, PADDING, Modality, TokenTable

Prompt = Sequence[Tensor]
"""What a row is conditioned on, in order: text ids (n,), integers, and latents of input images (C, h, w), floating point."""


class PromptRows(NamedTuple):
    """Prompts laid out as rows, padded on the left.

    Attributes:
        table: what the tokens are.
        ids: all text ids, packed.
        id_places: their places in the flattened rows.
        images: all input images.
        image_places: places of their tokens.
    """

    table: TokenTable
    ids: Tensor
    id_places: Tensor
    images: list[Tensor]
    image_places: Tensor


def check_prompts(prompts: Sequence[Prompt], channels: int, patch_size: int) -> None:
    """Refuses what is no prompt.

    Raises:
        TypeError: an item that is neither ids nor latents.
        ValueError: no prompt, an empty one, or latents of another shape.
    """
    if not prompts:
        raise ValueError("prompts is empty; accepted: at least one")
    for prompt in prompts:
        if not sum(_num_tokens(item, patch_size) for item in prompt):
            raise ValueError("a prompt has no tokens; accepted: at least one, such as the id that begins a text")
        for item in prompt:
            if not item.is_floating_point() and item.ndim != 1:
                raise TypeError(f"a prompt has {item.dtype} of shape {tuple(item.shape)}; accepted: ids (n,) or latents (C, h, w)")
            if item.is_floating_point():
                check_latents("an input image", item, channels, patch_size)


def check_latents(name: str, latents: Tensor, channels: int, patch_size: int) -> None:
    """Refuses latents that are not (C, h, w) with sides that are multiples of the patch."""
    shape = tuple(latents.shape)
    if latents.ndim != 3 or shape[0] != channels or shape[1] % patch_size or shape[2] % patch_size or not all(shape):
        raise ValueError(f"{name} is {shape}; accepted: ({channels}, h, w) with sides that are multiples of {patch_size}")


def prompt_rows(prompts: Sequence[Prompt], patch_size: int, device: torch.device) -> PromptRows:
    """Every text token is a step of its own, every input image one step; padding comes first."""
    lengths = [sum(_num_tokens(item, patch_size) for item in prompt) for prompt in prompts]
    length = max(lengths)
    table = TokenTable.padding(len(prompts), length)
    ids, id_places, images, image_places = [], [], [], []
    for row, prompt in enumerate(prompts):
        place, order, span = length - lengths[row], 0, 0
        for item in prompt:
            here = slice(place, place + _num_tokens(item, patch_size))
            places = row * length + torch.arange(here.start, here.stop)
            if item.is_floating_point():
                _write_image(table, row, here, order, span, _patches(item, patch_size))
                order, span = order + 1, span + 1
                images.append(item)
                image_places.append(places)
            else:
                table.modality[row, here] = Modality.TEXT
                table.order[row, here] = order + torch.arange(len(item))
                order += len(item)
                ids.append(item)
                id_places.append(places)
            place = here.stop
        table.document[row, length - lengths[row] :] = 0
    nothing = torch.zeros(0, dtype=torch.long)
    return PromptRows(
        table.to(device),
        torch.cat([nothing.to(device), *(item.to(device) for item in ids)]),
        torch.cat([nothing, *id_places]).to(device),
        images,
        torch.cat([nothing, *image_places]).to(device),
    )


def output_table(prompts: TokenTable, sizes: Sequence[tuple[int, int]], patch_size: int) -> TokenTable:
    """The time token and the tokens of the image that is made, after the prompts; shorter rows are padded on the right."""
    grids = [(height // patch_size, width // patch_size) for height, width in sizes]
    table = TokenTable.padding(len(sizes), 1 + max(rows * columns for rows, columns in grids))
    table.modality[:, 0] = Modality.VISION
    table.document[:, 0] = 0
    # Orders of a prompt's real tokens count from 0, so that its last one tells how many steps it has; padding has order 0.
    first = prompts.order.amax(dim=1).cpu() + 1
    span = prompts.span.amax(dim=1).cpu() + 1
    table.order[:, 0] = first
    for row, grid in enumerate(grids):
        here = slice(1, 1 + grid[0] * grid[1])
        _write_image(table, row, here, int(first[row]) + 1, int(span[row]), grid)
        table.document[row, here] = 0
    return table.to(prompts.order.device)


def join(first: TokenTable, second: TokenTable) -> TokenTable:
    """Two tables side by side."""
    return TokenTable(*(torch.cat([left, right], dim=1) for left, right in zip(first, second, strict=True)))


def only_the_prompt(queries: TokenTable, keys: TokenTable) -> Tensor:
    """Upstream's cache in its first step: time and image see the prompt alone, not even themselves."""
    first_query = keys.shape[1] - queries.shape[1]
    seen = (keys.document != PADDING)[:, None].expand(-1, queries.shape[1], -1).clone()
    seen[:, :, first_query:] = False
    return seen


def _write_image(table: TokenTable, row: int, here: slice, order: int, span: int, grid: tuple[int, int]) -> None:
    index = torch.arange(grid[0] * grid[1])
    table.modality[row, here] = Modality.VISION
    table.order[row, here] = order
    table.span[row, here] = max(span, NO_SPAN + 1)
    table.grid[row, here] = torch.stack([torch.zeros_like(index), index // grid[1], index % grid[1]], dim=-1)


def _patches(latents: Tensor, patch_size: int) -> tuple[int, int]:
    return latents.shape[1] // patch_size, latents.shape[2] // patch_size


def _num_tokens(item: Tensor, patch_size: int) -> int:
    if not item.is_floating_point():
        return item.numel()
    rows, columns = _patches(item, patch_size) if item.ndim == 3 else (1, 1)
    return rows * columns
