import torch
from torch import nn

from mmblocks.tokenizers.conv.magvit2 import CausalConvolution, DepthToSpace, FlatConvolution, StatisticsNorm


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_new_places_come_from_groups_of_channels() -> None:
    upsample = DepthToSpace(3, step=(2, 2), conv=FlatConvolution)
    x = values(1, 3, 2, 5)
    made = upsample.conv(x)
    for row in (0, 1):
        for column in (0, 1):
            assert torch.equal(upsample(x)[:, :, row::2, column::2], made[:, 3 * (2 * row + column) :][:, :3])


def test_a_clip_loses_its_second_frame_when_frames_are_doubled() -> None:
    upsample = DepthToSpace(3, step=(2, 2, 2), conv=CausalConvolution)
    x = values(1, 3, 3, 2, 2)
    made = upsample.conv(x)
    first, second = made[:, :3], made[:, 12:15]  # of each pair of frames, at the even rows and columns
    got = upsample(x)[:, :, :, ::2, ::2]
    kept = [first[:, :, 0], first[:, :, 1], second[:, :, 1], first[:, :, 2], second[:, :, 2]]
    assert torch.equal(got, torch.stack(kept, dim=2))
    torch.testing.assert_close(upsample(x[:, :, :1]), upsample(x)[:, :, :1])


def test_a_causal_convolution_is_that_of_the_last_frames() -> None:
    conv = CausalConvolution(2, 4, 3, stride=(2, 1, 1))
    x = values(1, 2, 5, 4, 4)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    wanted = nn.functional.conv3d(padded[:, :, :3], conv.weight, conv.bias)  # sees the frames 0, 1, 2
    torch.testing.assert_close(conv(x)[:, :, 1:2], wanted)
    assert conv(x).shape == (1, 4, 3, 4, 4)


def test_the_norm_takes_spread_and_mean_of_the_codes() -> None:
    norm = StatisticsNorm(32, condition_dim=3)
    codes = values(2, 3, 2, 2)
    spread = codes.flatten(2).std(dim=-1).square().add(1e-6).sqrt()
    x = values(2, 32, 4, 4)
    plain = nn.functional.group_norm(x, 32, eps=1e-6)
    wanted = norm.scale(spread)[..., None, None] * plain + norm.shift(codes.mean((2, 3)))[..., None, None]
    torch.testing.assert_close(norm(x, codes), wanted)
