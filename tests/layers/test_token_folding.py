"""Folding: squares in and out of a trunk, whatever else stands in the rows."""

import pytest
import torch

from mmblocks import Block
from mmblocks.layers.reduction.token_folding import TokenShuffle, TokenUnshuffle, fold, folding
from mmblocks.layers.reduction.token_reduction import spread
from mmblocks.sequence.tokens import Modality, TokenTable


def rows(sizes=((4, 6), (2, 4)), text: int = 2) -> TokenTable:
    """A row for each image: text, the image, text; padded after."""
    length = max(h * w for h, w in sizes) + 2 * text
    table = TokenTable.padding(len(sizes), length)
    for row, (height, width) in enumerate(sizes):
        count = height * width
        one = TokenTable.text(1, count + 2 * text)
        here = slice(text, text + count)
        one.modality[:, here], one.span[:, here] = Modality.VISION, 0
        one.grid[0, here, 1:] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        for column, written in zip(table, one, strict=True):
            column[row, : count + 2 * text] = written[0]
    return table


def test_squares_hold_their_neighbours_and_tables_count_in_squares() -> None:
    table, x = rows(), torch.randn(2, 28, 8)
    folds = folding(table, 2)
    assert folds.members.shape == (8, 4)
    assert folds.members[0].tolist() == [2, 3, 8, 9] and folds.members[-1].tolist() == [28 + 4, 28 + 5, 28 + 8, 28 + 9]
    made = fold(x, folds, x.flatten(0, 1)[folds.members].mean(1))
    assert made.x.shape == (2, 10, 8) and made.size[0].tolist() == [1, 1, 4, 4, 4, 4, 4, 4, 1, 1]
    assert made.table.grid[0, 2:8, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert torch.equal(made.x[0, :2], x[0, :2]) and torch.equal(made.x[1, 4:6], x[1, 10:12])
    assert made.table.is_padding[1, 6:].all() and not made.x[1, 6:].any()
    back = spread(made.x, made)
    torch.testing.assert_close(back.flatten(0, 1)[folds.members[3]], made.x[0, 5].expand(4, -1))


def test_codes_go_in_and_come_out_in_the_order_of_members(tmp_path) -> None:
    torch.manual_seed(0)
    table, x = rows(), torch.randn(2, 28, 8)
    shuffle, unshuffle = TokenShuffle(dim=8), TokenUnshuffle(dim=8)
    made = shuffle(x, table)
    changed = x.clone()
    changed[0, 9] += 1  # in the first square alone
    assert (shuffle(changed, table).x != made.x).any(-1).nonzero().tolist() == [[0, 2]]
    states = unshuffle(made.x[made.size > 1])
    assert states.shape == (8, 4, 8)
    (states.square().sum() + made.x.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in shuffle.parameters())
    assert all(p.grad is not None and p.grad.any() for p in unshuffle.parameters())
    shuffle.save_pretrained(tmp_path)
    assert torch.equal(Block.from_pretrained(tmp_path)(x, table).x, made.x)
    assert shuffle.bfloat16()(x.bfloat16(), table).x.dtype == torch.bfloat16


def test_text_alone_passes() -> None:
    x, table = torch.randn(2, 5, 8), TokenTable.text(2, 5)
    assert torch.equal(TokenShuffle(dim=8)(x, table).x, x)


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 2"):
        folding(rows(((3, 4),)), 2)
    with pytest.raises(ValueError, match="factor is 0"):
        folding(rows(), 0)
    with pytest.raises(ValueError, match="dim is 6, factor 2"):
        TokenShuffle(dim=6)
