"""ViTamin, convolutions first and a transformer after them, as an encoder, and turned round as a decoder.

Shapes: B images, H and W pixels, h and w tokens of 16 x 16 pixels, C width of the transformer, D width of a code.
"""

from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Rule
from mmblocks.checkpoints.layouts.rules import nested
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from mmblocks.tokenizers.towers.attention_projection import AttentionProjection, GatedGELU

_BOTTLENECK = (
    ("pre_norm.*", "norm.*"),
    ("conv1_1x1.*", "expand.*"),
    ("up.conv.*", "enlarge.1.*"),
    ("conv2_kxk.*", "depthwise.*"),
    ("conv3_1x1.*", "reduce.*"),
)
_LAYER = (
    ("norm1.*", "attention_norm.*"),
    ("attn.qkv.*", "attention.qkv.*"),
    ("attn.proj.*", "attention.out.*"),
    ("norm2.*", "mlp_norm.*"),
    ("mlp.norm.*", "mlp.norm.*"),
    ("mlp.w0.*", "mlp.gate.*"),
    ("mlp.w1.*", "mlp.up.*"),
    ("mlp.w2.*", "mlp.down.*"),
)


VITAMIN_RULES = (
    *nested("encoder.patch_embed.backbone.stem", "encoder.stem", (("conv1.*", "0.*"), ("norm1.*", "1.*"), ("conv2.*", "3.*"))),
    *nested(
        "encoder.patch_embed.backbone.stages.{}.{}", "encoder.stages.{}.{}", (("shortcut.expand.*", "shortcut.1.*"), *_BOTTLENECK)
    ),
    *nested("encoder.patch_embed.backbone.pool", "encoder.pool", (("norm.*", "0.*"), ("proj.*", "1.*"))),
    *nested("encoder.blocks.{}", "encoder.layers.{}", _LAYER),
    Rule("encoder.norm.*", "encoder.norm.*"),
    *nested("decoder.blocks.{}", "decoder.layers.{}", _LAYER),
    Rule("decoder.norm.*", "decoder.norm.*"),
    Rule("decoder.up_conv1.conv.*", "decoder.pool.1.*"),
    *nested("decoder.up_conv2.{}", "decoder.stages.0.{}", (("shortcut.conv.*", "shortcut.1.*"), *_BOTTLENECK)),
    *nested("decoder.up_conv3.{}", "decoder.stages.1.{}", (("shortcut.conv.*", "shortcut.1.*"), *_BOTTLENECK)),
    *nested("decoder.up_conv4", "decoder.stem", (("conv1.conv.*", "1.*"), ("norm1.*", "2.*"), ("conv2.*", "4.*"))),
)
"""UniTok's names of both halves. The positions of its encoder are zeros that do not learn: they are not here."""


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each place of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Keeps the shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _enlarging(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2.0), nn.Conv2d(before, after, 3, padding=1)


class InvertedBottleneck(nn.Module):
    """Norm, 1x1 convolution to four times the width, 3x3 convolution of each channel by itself, 1x1 convolution; added.

    Args:
        before, after: channels.
        resample: whether it halves the sides ("down"), doubles them ("up"), or keeps them.
    """

    def __init__(self, before: int, after: int, resample: Literal["down", "up"] | None = None) -> None:
        super().__init__()
        inner = 4 * after
        self.norm = ChannelNorm(before)
        self.expand = nn.Conv2d(before, inner, 1)
        self.enlarge = nn.Sequential(*_enlarging(inner, inner)) if resample == "up" else nn.Identity()
        stride = 2 if resample == "down" else 1
        self.depthwise = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner)
        self.reduce = nn.Conv2d(inner, after, 1)
        self.shortcut: nn.Module = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        if resample == "down":
            self.shortcut = nn.Sequential(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), self.shortcut)
        elif resample == "up":
            self.shortcut = nn.Sequential(*_enlarging(before, after))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Changes width and size."""
        inner = self.enlarge(gelu(self.expand(self.norm(x))))
        return self.reduce(gelu(self.depthwise(inner))) + self.shortcut(x)


class FusedAttention(nn.Module):
    """Attention between all tokens, with one matrix for queries, keys and values."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Keeps the shape."""
        query, key, value = rearrange(self.qkv(x), "b n (s h d) -> s b h n d", s=3, h=self.num_heads)
        return self.out(rearrange(scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)"))


class ViTaminLayer(nn.Module):
    """Norm, attention, norm, gated feed-forward of twice the width; each pair added to what comes in."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = FusedAttention(dim, num_heads=num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = GatedGELU(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Keeps the shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ViTaminEncoder(Block):
    """A stem, two stages of convolutions, and a transformer without positions; each halving of the sides is in the former.

    Args:
        dim: C.
        widths: channels of the two stages, and of the stem before them, which has as many as the first.
        depths: blocks of the two stages.
        num_layers, num_heads: of the transformer.
        code_dim: D, to which an ``AttentionProjection`` narrows; None for C.

    Source: ViTamin (arXiv 2404.02132), without positions and class token as in UniTok (arXiv 2502.20321).
    """

    def __init__(
        self,
        *,
        dim: int = 1024,
        widths: tuple[int, int] = (160, 320),
        depths: tuple[int, int] = (2, 4),
        num_layers: int = 31,
        num_heads: int = 16,
        code_dim: int | None = 64,
    ) -> None:
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1), ChannelNorm(first), nn.GELU(), nn.Conv2d(first, first, 3, padding=1)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(InvertedBottleneck(before, after, "down"), *(InvertedBottleneck(after, after) for _ in range(depth - 1)))
            for before, after, depth in ((first, first, depths[0]), (first, second, depths[1]))
        )
        self.pool = nn.Sequential(ChannelNorm(second), nn.Conv2d(second, dim, 3, stride=2, padding=1))
        self.layers = nn.Sequential(*(ViTaminLayer(dim, num_heads=num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = _projection(dim, code_dim)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Pixels, normalised, to features."""
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        x = channels_last(self.pool(x))
        tokens = self.norm(self.layers(x.flatten(1, 2)))
        return self.project(tokens.view(x.shape))


class ViTaminDecoder(Block):
    """A transformer without positions, and convolutions that double the sides four times.

    Args:
        dim, widths, num_layers, num_heads, code_dim: those of the encoder.
        depths: blocks of the two stages, the wider first.

    Source: UniTok (arXiv 2502.20321; FoundationVision/UniTok).
    """

    def __init__(
        self,
        *,
        dim: int = 1024,
        widths: tuple[int, int] = (160, 320),
        depths: tuple[int, int] = (4, 2),
        num_layers: int = 31,
        num_heads: int = 16,
        code_dim: int | None = 64,
    ) -> None:
        super().__init__()
        last, wider = widths
        self.in_dim = dim if code_dim is None else code_dim
        self.project = _projection(code_dim, dim)
        self.layers = nn.Sequential(*(ViTaminLayer(dim, num_heads=num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pool = nn.Sequential(*_enlarging(dim, wider))
        self.stages = nn.ModuleList(
            nn.Sequential(InvertedBottleneck(before, after, "up"), *(InvertedBottleneck(after, after) for _ in range(depth - 1)))
            for before, after, depth in ((wider, wider, depths[0]), (wider, last, depths[1]))
        )
        self.stem = nn.Sequential(*_enlarging(last, last), ChannelNorm(last), nn.GELU(), nn.Conv2d(last, 3, 3, padding=1))

    def forward(self, z: Float[Tensor, "B h w D"]) -> Float[Tensor, "B 3 H W"]:
        """Codes to pixels, normalised.

        Raises:
            ValueError: codes of another shape.
        """
        check_shape("z", z, "B", "h", "w", self.in_dim)
        tokens = self.project(z)
        x = self.norm(self.layers(tokens.flatten(1, 2))).view(tokens.shape)
        x = self.pool(channels_first(x))
        for stage in self.stages:
            x = stage(x)
        return self.stem(x)


def _projection(before: int | None, after: int | None) -> nn.Module:
    """As many heads as fit the narrower width into the wider one."""
    if before is None or after is None:
        return nn.Identity()
    return AttentionProjection(in_dim=before, out_dim=after, num_heads=max(before, after) // min(before, after))
