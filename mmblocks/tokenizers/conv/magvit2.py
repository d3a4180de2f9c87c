"""The pieces of Open-MAGVIT2's autoencoders, for images (B, C, H, W) and, causal in time, for clips (B, C, T, H, W)."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import group_norm, pad

from mmblocks.tokenizers.conv.blocks import Conv2d, GroupNorm, norm_silu

Conv = Callable[..., nn.Module]
"""Makes a convolution: ``conv(in_channels, out_channels, kernel, stride=..., bias=...)``. With a stride of 1 it keeps the sides."""


class FlatConvolution(Conv2d):
    """A convolution of images with zeros around them."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: tuple[int, ...] = (1, 1), bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride[0], padding=kernel // 2, bias=bias)


class CausalConvolution(nn.Conv3d):
    """A convolution of clips that sees the present frame and those before it; zeros around each frame and before the first."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: tuple[int, ...] = (1, 1, 1), bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, (stride[0], stride[1], stride[2]), bias=bias)
        self.front = (*[kernel // 2] * 4, kernel - 1, 0)

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C2 T2 H2 W2"]:
        """With a stride of 2 in time, ``1 + T`` frames become ``1 + T // 2``."""
        return super().forward(pad(clips, self.front))


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice; added to the input, which a kernel of size one widens where needed. No biases."""

    def __init__(self, in_channels: int, out_channels: int, *, conv: Conv) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, bias=False)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, bias=False)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else conv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C *size"]) -> Float[Tensor, "B C2 *size"]:
        """Keeps the size."""
        hidden = self.conv1(norm_silu(self.norm1, x))
        return self.shortcut(x) + self.conv2(norm_silu(self.norm2, hidden))


class StatisticsNorm(nn.Module):
    """A group norm whose scale and shift come from the spread and the mean of the codes of the whole image or clip."""

    def __init__(self, channels: int, *, condition_dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(condition_dim, channels)
        self.shift = nn.Linear(condition_dim, channels)

    def forward(self, x: Float[Tensor, "B C *size"], codes: Float[Tensor, "B D *grid"]) -> Float[Tensor, "B C *size"]:
        """``codes`` have at least two places, or there is no spread."""
        places = codes.flatten(2)
        # torch warns of a variance of nothing.
        spread = places.var(dim=-1) if len(places) else places[..., 0]
        scale = self.scale((spread + 1e-6).sqrt())
        shift = self.shift(places.mean(dim=-1))
        ones = (1,) * (x.ndim - 2)
        return group_norm(x, 32, eps=1e-6) * scale.unflatten(1, (-1, *ones)) + shift.unflatten(1, (-1, *ones))


class DepthToSpace(nn.Module):
    """Doubles the sides, and the frames where ``step`` says so: a convolution makes the new places' channels.

    Args:
        channels: of the map.
        step: (2, 2) for images; (1, 2, 2) or (2, 2, 2) for clips. Of the first frame only one is made, as of each image.
        conv: makes the convolution.
    """

    def __init__(self, channels: int, *, step: tuple[int, ...], conv: Conv) -> None:
        super().__init__()
        self.frames = step[0] if len(step) == 3 else None
        self.conv = conv(channels, channels * 4 * (self.frames or 1), 3)

    def forward(self, x: Float[Tensor, "B C *size"]) -> Float[Tensor, "B C *size2"]:
        """T frames become T, or 2 T - 1."""
        x = self.conv(x)
        if self.frames is None:
            return rearrange(x, "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)
        x = rearrange(x, "b (f p q c) t h w -> b c (t f) (h p) (w q)", f=self.frames, p=2, q=2)
        # The second frame goes, not the first: so it was trained.
        return x if self.frames == 1 else x[:, :, [0, *range(2, x.shape[2])]]
