"""Structure tokens around an embedder's own: in layouts, in ragged batches, learned and saved."""

import pytest
import torch

from mmblocks import Block
from mmblocks.embedders.eve2 import EVE2PatchEmbedding
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.embedders.structured import StructuredEmbedder
from mmblocks.layers.images.image_tokens import grid_layout
from mmblocks.layers.images.structure_tokens import NUM_COLUMNS, NUM_ROWS, ROW_END, with_structure
from mmblocks.sequence.tokens import ImageLayout, TokenKind

SIZES = [(4, 6), (2, 2), (6, 4), (2, 8)]


def structured(**options) -> StructuredEmbedder:
    torch.manual_seed(0)
    return StructuredEmbedder(embedder=LinearPatchEmbedding(dim=8, patch_size=2), dim=8, **{"max_size": (3, 4), **options})


def test_rows_end_and_the_size_comes_first() -> None:
    made = with_structure(grid_layout(2, 3, class_token=True), size_prefix=True)
    assert made.source.tolist() == [NUM_ROWS, NUM_COLUMNS, 0, 1, 2, 3, ROW_END, 4, 5, 6, ROW_END]
    size, own, end = int(TokenKind.SIZE), [int(TokenKind.CLASS)] + [int(TokenKind.PATCH)] * 3, int(TokenKind.NEWLINE)
    assert made.layout.kind.tolist() == [size, size, *own, end, *own[1:], end]
    assert made.layout.grid[6].tolist() == [0, 0, 3] and made.layout.grid[-1].tolist() == [0, 1, 3]
    assert not made.layout.grid[:3].any() and (made.rows, made.columns) == (2, 3)


def test_newlines_are_those_of_grid_layout_and_frames_have_their_own() -> None:
    for one, wanted in zip(with_structure(grid_layout(3, 2)).layout, grid_layout(3, 2, newline=True), strict=True):
        assert torch.equal(one, wanted)
    frames = torch.cartesian_prod(torch.arange(2), torch.arange(1), torch.arange(2))
    video = with_structure(ImageLayout(frames, torch.zeros(4, dtype=torch.long)))
    assert video.source.tolist() == [0, 1, ROW_END, 2, 3, ROW_END]


@pytest.mark.parametrize("options", [{}, {"row_ends": False}, {"max_size": None}, {"row_ends": False, "max_size": None}])
def test_own_tokens_are_untouched_in_ragged_batches(options) -> None:
    part, images = structured(**options), [torch.rand(3, *size) for size in SIZES]
    tokens, own = part(images), part.embedder(images)
    assert torch.equal(tokens.embeds[tokens.kind == TokenKind.PATCH], own.embeds)
    for number, size in enumerate(SIZES):
        layout, here = part.layout(*size), tokens.image == number
        assert torch.equal(tokens.grid[here], layout.grid) and torch.equal(tokens.kind[here], layout.kind)
        torch.testing.assert_close(part([images[number]]).embeds, tokens.embeds[here])
    if part.max_size is not None:
        first = tokens.embeds[tokens.image == 0][:2]
        assert torch.equal(first, torch.stack([part.num_rows[1], part.num_columns[2]]))


def test_learning_saving_and_half_precision(tmp_path) -> None:
    part, images = structured(), [torch.rand(3, *size) for size in SIZES]
    part.save_pretrained(tmp_path)
    tokens = part(images)
    assert torch.equal(Block.from_pretrained(tmp_path)(images).embeds, tokens.embeds)
    tokens.embeds.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())
    assert part.bfloat16()(images).embeds.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="an image has 4x1 tokens; accepted: at most 3x4"):
        structured()([torch.rand(3, 8, 2)])
    with pytest.raises(ValueError, match="accepted: patches, and no structure that is asked for"):
        StructuredEmbedder(embedder=EVE2PatchEmbedding(dim=8, hidden_dim=4, patch_size=2), dim=8).layout(4, 4)
    with pytest.raises(ValueError, match="such as 2x4"):
        structured().layout(2, 5)
