"""Positions as functions of the token table, and rotary embedding of them.

A position scheme is any function of a ``TokenTable`` that returns (B, L) or (B, L, axes), integer or float; the ones
that published models use are here. Positions restart in every packed document and do not count padding.

Shapes: B batch, L tokens, H heads, D width of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from mmblocks.masks import changes
from mmblocks.tokens import NO_SPAN, TokenTable

PositionScheme = Callable[[TokenTable], Tensor]
"""A table -> positions (B, L) or (B, L, axes)."""


def sequential(table: TokenTable) -> Int[Tensor, "B L"]:
    """0, 1, 2 ... inside each document: the plain 1-D scheme of Llama-like models, images included."""
    index = torch.arange(table.document.shape[1], device=table.document.device).expand_as(table.document)
    first = torch.where(changes(table.document), index, 0).cummax(dim=1).values
    return torch.where(table.is_padding, 0, index - first)


def by_order(table: TokenTable) -> Int[Tensor, "B L"]:
    """One position for all tokens of one order: an image that attends within itself takes one step (Transfusion)."""
    document_begins = changes(table.document)
    steps = (changes(table.order) | document_begins).long().cumsum(dim=1)
    first = torch.where(document_begins, steps, 0).cummax(dim=1).values
    return torch.where(table.is_padding, 0, steps - first)


def grid_2d(table: TokenTable) -> Int[Tensor, "B L 2"]:
    """(row, column) inside the image; zeros for text."""
    return table.grid[..., 1:]


def time_height_width(table: TokenTable) -> Int[Tensor, "B L 3"]:
    """(t, h, w) as in NEO: t advances with the order, so that an image takes one step; h and w count inside it."""
    return torch.cat([by_order(table)[..., None], grid_2d(table)], dim=-1)


def v2pe(table: TokenTable, increment: float) -> Float[Tensor, "B L"]:
    """Visual tokens advance by ``increment``, text by one; text behind an image resumes at the next whole number + 1.

    Source: V2PE (OpenGVLab/V2PE), where the increment is stride/256 with stride in {1, ..., 256}.

    Raises:
        ValueError: if ``increment`` is not in (0, 1].
    """
    if not 0 < increment <= 1:
        raise ValueError(f"increment is {increment}; accepted: 0 < increment <= 1")
    vision = table.span != NO_SPAN
    document_begins = changes(table.document)
    index = torch.arange(table.span.shape[1], device=table.span.device).expand_as(table.span)

    # Inside a run of visual tokens: how many steps so far. The token a document begins with has made none.
    run_begins = changes(vision.long()) | document_begins
    run_first = torch.where(run_begins, index, 0).cummax(dim=1).values
    so_far = torch.where(vision, index - run_first + 1 - document_begins.long().gather(1, run_first), 0)
    advance = so_far * increment

    # Whole steps: one per text token, and a finished run's length rounded up.
    run_ends = vision & run_begins.roll(-1, dims=1)
    run_ends[:, -1] = False
    rounded_up = torch.where(run_ends, advance.ceil(), 0.0)
    whole = (~vision).to(advance.dtype).cumsum(dim=1) + rounded_up.cumsum(dim=1) - rounded_up

    positions = whole + advance
    first = _at_document_start(positions, document_begins)
    return torch.where(table.is_padding, 0.0, positions - first).float()


def _at_document_start(values: Float[Tensor, "B L"], document_begins: Tensor) -> Float[Tensor, "B L"]:
    index = torch.arange(values.shape[1], device=values.device).expand_as(document_begins)
    first = torch.where(document_begins, index, 0).cummax(dim=1).values
    return values.gather(1, first)


class RotaryTable(NamedTuple):
    """Cosines and sines of the rotation angles, one per pair of channels, in float32."""

    cos: Float[Tensor, "B L half"]
    sin: Float[Tensor, "B L half"]


def rotary_table(positions: Num[Tensor, "B L"], dim: int, theta: float | Float[Tensor, "B 1"]) -> RotaryTable:
    """Angles ``position * theta ** (-2i / dim)`` for the channel pairs ``i``; ``theta`` may differ by row.

    Raises:
        ValueError: if ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"dim is {dim}; rotary embedding turns pairs of channels, so it must be even")
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    base = torch.as_tensor(theta, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / base[..., None] ** exponent
    angle = positions.float()[..., None] * frequency
    return RotaryTable(angle.cos(), angle.sin())


def rotate_half_split(x: Float[Tensor, "B H L D"], table: RotaryTable) -> Float[Tensor, "B H L D"]:
    """Rotates the pairs (i, i + D/2): the layout of Llama, Qwen, Emu3."""
    cos, sin = table.cos[:, None].to(x.dtype), table.sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_interleaved(x: Float[Tensor, "B H L D"], table: RotaryTable) -> Float[Tensor, "B H L D"]:
    """Rotates the pairs (2i, 2i + 1): the layout of NEO's patch embedding, EVA and the original RoFormer."""
    cos, sin = table.cos[:, None].to(x.dtype), table.sin[:, None].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def scale_rotary(
    positions: Num[Tensor, "B L"], dim: int, theta: float, scaling: dict[str, object] | None
) -> tuple[Num[Tensor, "B L"], float | Float[Tensor, "B 1"]]:
    """Stretches positions or the base, so that a trunk reads rows longer than it was trained on.

    ``{"type": "linear", "factor": f}`` divides positions by f; ``{"type": "dynamic", "factor": f, "max_position": m}``
    enlarges theta once a row is longer than m (NTK-aware). Keys already in a cache keep the angles they were given.
    Source: the ``rope_scaling`` of the Llama family.

    Returns:
        The positions and the base to hand to ``rotary_table``.
    """
    if scaling is None:
        return positions, theta
    factor = float(scaling["factor"])  # type: ignore[arg-type]
    if scaling["type"] == "linear":
        return positions / factor, theta
    length = positions.amax(dim=1, keepdim=True).float() + 1
    trained = float(scaling["max_position"])  # type: ignore[arg-type]
    stretch = (factor * length.clamp(min=trained) / trained - (factor - 1)) ** (dim / (dim - 2))
    return positions, theta * stretch


def check_rotary_scaling(scaling: dict[str, object] | None) -> None:
    """Refuses a ``rope_scaling`` that ``scale_rotary`` cannot follow.

    Raises:
        ValueError: unknown type, missing or superfluous entries, or a factor below 1.
    """
    if scaling is None:
        return
    entries = {"linear": {"type", "factor"}, "dynamic": {"type", "factor", "max_position"}}
    wanted = entries.get(str(scaling.get("type")))
    if wanted is None or set(scaling) != wanted:
        accepted = " or ".join(str(sorted(names)) for names in entries.values())
        raise ValueError(f"rope_scaling is {scaling}; accepted: type 'linear' or 'dynamic' with entries {accepted}")
    if float(scaling["factor"]) < 1:  # type: ignore[arg-type]
        raise ValueError(f"rope_scaling has factor {scaling['factor']}; accepted: 1 or more")
