import math
from functools import partial

import pytest
import torch

from mmblocks.sequence.positions import (
    axes_rotary_table,
    by_order,
    grid_2d,
    mrope,
    rotary_table,
    rotate_axes,
    rotate_half_split,
    rotate_interleaved,
    sections_rotary_table,
    sequential,
    time_height_width,
    v2pe,
)
from mmblocks.sequence.tokens import NO_SPAN, Modality, TokenTable
from tests.shared.random_tables import random_table


def two_documents() -> TokenTable:
    """Padding, then 'ab', a 2x2 image seen at once, 'c'; then a second document 'de'."""
    table = TokenTable.padding(1, 10)
    table.document[0, 1:] = torch.tensor([0] * 7 + [1] * 2)
    table.modality[0, 1:] = Modality.TEXT
    table.order[0, 1:] = torch.tensor([0, 1, 2, 2, 2, 2, 3, 0, 1])
    table.span[0, 3:7] = 0
    table.modality[0, 3:7] = Modality.VISION
    table.grid[0, 3:7, 1:] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    return table


def test_sequential_restarts_in_each_document_and_skips_padding() -> None:
    assert sequential(two_documents()).tolist() == [[0, 0, 1, 2, 3, 4, 5, 6, 0, 1]]


def test_by_order_gives_an_image_one_step() -> None:
    assert by_order(two_documents()).tolist() == [[0, 0, 1, 2, 2, 2, 2, 3, 0, 1]]


def test_time_height_width_counts_rows_and_columns_inside_the_image() -> None:
    positions = time_height_width(two_documents())[0]
    assert positions[3:8].tolist() == [[2, 0, 0], [2, 0, 1], [2, 1, 0], [2, 1, 1], [3, 0, 0]]


def v2pe_read_aloud(table: TokenTable, row: int, increment: float) -> list[float]:
    """V2PE one token at a time."""
    positions: list[float] = []
    for i in range(table.shape[1]):
        if table.is_padding[row, i] or i == 0 or table.document[row, i] != table.document[row, i - 1]:
            positions.append(0.0)
        elif table.span[row, i] != NO_SPAN:
            positions.append(positions[-1] + increment)
        else:
            positions.append(math.ceil(positions[-1]) + 1.0)
    return positions


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("increment", [1.0, 0.5, 1 / 16, 1 / 256])
def test_v2pe_equals_its_description(seed: int, increment: float) -> None:
    table = random_table(torch.Generator().manual_seed(seed), batch=2)
    for row in range(2):
        assert v2pe(table, increment)[row].tolist() == v2pe_read_aloud(table, row, increment)


@pytest.mark.parametrize("increment", [0.0, -1.0, 1.5, math.nan])
def test_v2pe_refuses_increments_outside_its_range(increment: float) -> None:
    with pytest.raises(ValueError, match="increment is"):
        v2pe(two_documents(), increment)


@pytest.mark.parametrize("rotate", [rotate_half_split, rotate_interleaved])
def test_rotation_keeps_lengths_and_depends_on_distance_alone(rotate) -> None:
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(q: float, k: float) -> float:
        at_q, at_k = (rotary_table(torch.tensor([[p]]), 8, 100.0) for p in (q, k))
        return float((rotate(query, at_q) * rotate(key, at_k)).sum())

    assert score(5.0, 2.0) == pytest.approx(score(13.5, 10.5), abs=1e-5)
    assert score(5.0, 2.0) != pytest.approx(score(5.0, 3.0), abs=1e-3)
    rotated = rotate(query, rotary_table(torch.tensor([[7.0]]), 8, 100.0))
    assert float(rotated.norm()) == pytest.approx(float(query.norm()), rel=1e-5)


def test_interleaved_is_half_split_with_the_channels_reordered() -> None:
    x = torch.randn(2, 3, 5, 8)
    table = rotary_table(torch.arange(5.0)[None].expand(2, 5), 8, 10000.0)
    pairs = torch.arange(8).view(2, 4).T.flatten()  # 0 4 1 5 2 6 3 7
    assert torch.equal(rotate_interleaved(x[..., pairs], table), rotate_half_split(x, table)[..., pairs])


def test_odd_rotary_width_is_refused() -> None:
    with pytest.raises(ValueError, match="dim is 7"):
        rotary_table(torch.zeros(1, 1), 7, 10000.0)


def mrope_read_aloud(table: TokenTable, row: int) -> list[list[int]]:
    """m-RoPE one token at a time."""
    positions: list[list[int]] = []
    start = furthest = 0
    for i in range(table.shape[1]):
        now, last = table.document[row, i], table.document[row, i - 1] if i else None
        if table.is_padding[row, i]:
            positions.append([0, 0, 0])
            continue
        if now != last:
            furthest = -1
        new_run = now != last or table.span[row, i] == NO_SPAN or table.span[row, i] != table.span[row, i - 1]
        start = furthest + 1 if new_run else start
        place = table.grid[row, i].tolist() if table.span[row, i] != NO_SPAN else [0, 0, 0]
        positions.append([start + axis for axis in place])
        furthest = max(furthest, *positions[-1])
    return positions


@pytest.mark.parametrize("seed", range(8))
def test_mrope_equals_its_description(seed: int) -> None:
    table = random_table(torch.Generator().manual_seed(seed), batch=2)
    for row in range(2):
        assert mrope(table)[row].tolist() == mrope_read_aloud(table, row)


def test_axes_turn_their_own_channels() -> None:
    positions, dims, bases = torch.randint(20, (2, 5, 3)), (8, 4, 4), (1e6, 1e4, 1e4)
    x = torch.randn(2, 3, 5, 16)
    rotated = rotate_axes(x, axes_rotary_table(positions, dims, bases), dims).split(dims, -1)
    for axis, part in enumerate(x.split(dims, -1)):
        alone = rotate_half_split(part, rotary_table(positions[..., axis], dims[axis], bases[axis]))
        assert torch.equal(rotated[axis], alone)
    with pytest.raises(ValueError, match="3 axes with 2 dims"):
        axes_rotary_table(positions, (8, 8), bases)


def test_sections_are_one_axis_where_all_positions_agree() -> None:
    one = torch.randint(20, (2, 5))
    for interleaved in (False, True):
        table = sections_rotary_table(one[..., None].expand(-1, -1, 3), 16, 100.0, (2, 3, 3), interleaved=interleaved)
        assert torch.equal(table.cos, rotary_table(one, 16, 100.0).cos)
    with pytest.raises(ValueError, match="8 in all"):
        sections_rotary_table(one[..., None], 16, 100.0, (4,))


def test_sections_and_turns_give_each_pair_its_axis() -> None:
    positions = torch.tensor([[[1, 2, 3]]])
    apart = torch.stack([rotary_table(positions[..., axis], 16, 100.0).sin[0, 0] for axis in range(3)])
    for interleaved, axes in ((False, [0, 0, 1, 1, 1, 2, 2, 2]), (True, [0, 1, 2, 0, 1, 2, 0, 1])):
        got = sections_rotary_table(positions, 16, 100.0, (2, 3, 3), interleaved=interleaved).sin[0, 0]
        wanted = apart[axes, range(8)]
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("scheme", [sequential, by_order, grid_2d, time_height_width, mrope, partial(v2pe, increment=0.25)])
def test_padding_in_the_midst_takes_no_position(scheme) -> None:
    """A stream of guidance that skips some text has such padding."""
    table = two_documents()
    text = [column for column in range(table.shape[1]) if table.span[0, column] == NO_SPAN and not table.is_padding[0, column]]
    for skipped in text:
        kept = [column for column in range(table.shape[1]) if column != skipped]
        padding = TokenTable.padding(1, 1)
        columns = [
            torch.cat([old[:, :skipped], new, old[:, skipped + 1 :]], dim=1) for old, new in zip(table, padding, strict=True)
        ]
        shorter = TokenTable(*(column[:, kept] for column in table))
        assert torch.equal(scheme(TokenTable(*columns))[:, kept], scheme(shorter))
