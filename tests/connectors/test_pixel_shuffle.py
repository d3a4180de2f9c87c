"""Pixel shuffle: where each token goes, in both versions, and what does not divide."""

import pytest
import torch

from mmblocks.connectors.chain import ConnectorChain
from mmblocks.connectors.pixel_shuffle import PixelShuffle


def test_a_square_becomes_one_token_row_by_row() -> None:
    features = torch.randn(2, 4, 6, 3)
    joined = PixelShuffle()(features)
    torch.testing.assert_close(joined[:, 1, 2], features[:, 2:4, 4:6].flatten(1))
    assert torch.equal(PixelShuffle(version="v1")(features), joined.transpose(1, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PixelShuffle(factor=0), "factor is 0; accepted: at least 1"),
        (lambda: PixelShuffle(factor=4)(torch.randn(1, 8, 10, 3)), "8x10 tokens; accepted: multiples of 4, such as 8x8"),
        (lambda: PixelShuffle().out_grid((1, 2)), "1x2 tokens; accepted: multiples of 2, such as 2x2"),
        (lambda: ConnectorChain(parts=[]), "parts is empty"),
    ],
)
def test_what_cannot_be_joined_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.unchecked
def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version is 'v3'; accepted: 'v1', 'v2'"):
        PixelShuffle(version="v3")
