"""Videos: tokens that stay the same become one, groups of frames are averaged, tables follow."""

import pytest
import torch

from mmblocks.layers.reduction.token_frames import merge_still, pool_frames
from mmblocks.sequence.tokens import Modality, TokenTable


def clip(frames: int = 4, places: int = 3, text: int = 2) -> TokenTable:
    """Frames of one row of places, then text."""
    table = TokenTable.text(1, frames * places + text)
    here = slice(0, frames * places)
    table.modality[:, here], table.span[:, here] = Modality.VISION, 0
    grid = torch.cartesian_prod(torch.arange(frames), torch.arange(places))
    table.grid[0, here, 0], table.grid[0, here, 2] = grid.T
    return table


def test_runs_that_stay_the_same_become_their_first() -> None:
    torch.manual_seed(0)
    table, x = clip(), torch.randn(1, 14, 8)
    x[0, 3] = x[0, 0] * 2  # the first place: alike in frames 0 and 1, and in 2 and 3
    x[0, 9] = x[0, 6]
    made = merge_still(x, table, 0.99)
    assert made.kept[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13]
    torch.testing.assert_close(made.x[0, 0], (x[0, 0] + x[0, 3]) / 2)
    assert made.size[0].tolist() == [2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert torch.equal(merge_still(x, table, 1.01).x, x)


@pytest.mark.parametrize(("num_frames", "groups"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_groups_of_frames_are_averaged_place_by_place(num_frames: int, groups: int) -> None:
    table, x = clip(), torch.randn(1, 14, 8)
    made = pool_frames(x, table, num_frames)
    wanted = torch.stack([part.mean(0) for part in x[0, :12].view(4, 3, 8).split(num_frames)])
    torch.testing.assert_close(made.x[0, :-2].view(groups, 3, 8), wanted)
    assert made.table.grid[0, :-2, 0].tolist() == [g for g in range(groups) for _ in range(3)]
    assert torch.equal(made.x[:, -2:], x[:, -2:])


def test_tokens_with_one_place_are_told_apart_and_so_are_videos() -> None:
    table, x = clip(text=0), torch.randn(1, 12, 8)
    table.grid[0, 1::3] = table.grid[0, 0::3]  # two tokens of each frame stand at the first place, as a class token does
    torch.testing.assert_close(pool_frames(x, table, 4).x[0], x[0].view(4, 3, 8).mean(0))
    table.span[0, 6:] = 1
    torch.testing.assert_close(pool_frames(x, table, 4).x[0], x[0].view(2, 2, 3, 8).mean(1).flatten(0, 1))


def test_text_alone_and_no_frames() -> None:
    x, table = torch.randn(1, 5, 4), TokenTable.text(1, 5)
    assert torch.equal(merge_still(x, table, 0.5).x, x) and torch.equal(pool_frames(x, table, 2).x, x)
    with pytest.raises(ValueError, match="num_frames is 0"):
        pool_frames(x, table, 0)
