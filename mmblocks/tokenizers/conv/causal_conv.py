"""The temporal pieces of Emu3's tokenizer: convolutions that never look ahead in time.

Clips are (B, C, T, H, W).
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, silu

FRONT = 2
"""Zero frames before the first one, whatever the kernel's length."""


class CausalConv3d(nn.Conv3d):
    """A 3-d convolution of frames up to the present one.

    Rows and columns are padded so that a stride of 1 keeps them; T frames become ``(T + 2 - kernel) // stride + 1``.

    Args:
        in_channels, out_channels: widths.
        kernel: its frames, rows and columns.
        stride: of the frames; rows and columns have stride 1.

    Source: Emu3 (arXiv 2409.18869; baaivision/Emu3).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=(stride, 1, 1))
        _, rows, columns = kernel
        self.sides = (columns // 2, (columns - 1) // 2, rows // 2, (rows - 1) // 2)

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C2 T2 H W"]:
        """The convolved clips."""
        return super().forward(pad(clips, (*self.sides, FRONT, 0)))


class TemporalDownsample(nn.Module):
    """Halves the number of frames; an odd number is rounded down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (4, 3, 3), stride=2)

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t H W"]:
        """As many frames as T // 2."""
        return silu(self.conv(clips))


class TemporalUpsample(nn.Module):
    """Doubles the number of frames: each twice, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, clips: Float[Tensor, "B C t H W"]) -> Float[Tensor, "B C T H W"]:
        """As many frames as 2 t."""
        return silu(self.conv(clips.repeat_interleave(2, dim=2)))


class TemporalResidualBlock(nn.Module):
    """Batch norm, SiLU, causal 3x3x3 convolution, twice; added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Keeps the shape."""
        hidden = self.conv1(silu(self.norm1(clips)))
        return clips + self.conv2(silu(self.norm2(hidden)))
