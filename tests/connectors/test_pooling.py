"""Averages: Emu2's over squares, torch's adaptive ones, and a video's over space and over time."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d, avg_pool2d

from mmblocks.connectors.average_pool import AdaptivePool, AveragePool
from mmblocks.connectors.emu2 import Emu2UpProjection
from mmblocks.connectors.spatio_temporal_pool import SpatioTemporalPool


@pytest.mark.parametrize(("rows", "columns", "num_tokens"), [(8, 8, 4), (8, 8, 64), (9, 9, 4), (8, 8, 5), (6, 9, 4), (7, 7, 10)])
def test_averages_over_squares_are_those_of_torch(rows, columns, num_tokens) -> None:
    features = torch.randn(2, rows, columns, 3)
    wanted = avg_pool2d(features.permute(0, 3, 1, 2), int(min(rows, columns) // num_tokens**0.5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(AveragePool(num_tokens=num_tokens)(features), wanted)
    torch.testing.assert_close(AveragePool(num_tokens=1)(features, num_tokens=num_tokens), wanted)


def test_adaptive_averages_of_a_video_are_those_of_torch() -> None:
    features = torch.randn(2, 5, 7, 4, 3)
    wanted = adaptive_avg_pool3d(features.permute(0, 4, 1, 2, 3), (2, 3, 3)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(AdaptivePool(size=(2, 3, 3))(features), wanted)


def test_frames_come_first_then_places() -> None:
    features = torch.randn(2, 3, 2, 4, 5)
    tokens = SpatioTemporalPool()(features)
    torch.testing.assert_close(tokens[:, 1], features[:, 1].mean(dim=(1, 2)))
    torch.testing.assert_close(tokens[:, 3 + 1 * 4 + 2], features[:, :, 1, 2].mean(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AveragePool(num_tokens=0), "num_tokens is 0; accepted: at least 1"),
        (lambda: AveragePool(num_tokens=10)(torch.randn(1, 3, 4, 2)), "num_tokens is 10; accepted for 3x4 tokens: 1 to 9"),
        (lambda: AveragePool()(torch.randn(1, 3, 4, 2), num_tokens=0), "num_tokens is 0; accepted for 3x4 tokens"),
        (lambda: Emu2UpProjection(image_dim=2, dim=2).out_grid((7, 7)), "num_tokens is 64; accepted for 7x7 tokens: 1 to 49"),
        (lambda: AdaptivePool(size=(2,)), r"size is \(2,\); accepted: \(rows, columns\) or"),
        (lambda: AdaptivePool(size=(2, 0)), r"size is \(2, 0\)"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
